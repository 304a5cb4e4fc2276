"""Decoders of what decides where a lane goes on."""

from __future__ import annotations

import numpy as np

from tests.ptx.instructions import GONE, HELD, Action, Context
from tests.ptx.memory import LaneError, Lanes
from tests.ptx.operands import Operands, State


def branch(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode bra."""
    target = context.labels[operands[0]]
    return [Action(jump=lambda state, lanes: target)]


def branch_by_index(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode brx.idx."""
    source = operands.source(operands[0], "u32")
    targets = np.array([context.labels[label] for label in context.tables[operands[1]]])
    return [Action(jump=lambda state, lanes: targets[source(state, lanes)])]


def leave(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode ret and exit."""
    back = context.returns.get(context.function)
    if back is None or operands.statement.opcode == "exit":
        return [Action(jump=lambda state, lanes: GONE)]
    return [Action(jump=lambda state, lanes: state.registers[back][lanes].astype(int))]


def call(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode a call: copying of arguments with a jump, then copying of results."""
    groups = list(operands.statement.operands)
    name = next(text for text in groups if not text.startswith("("))
    callee = context.functions[name]
    arguments, results = (
        [] if text is None else text.strip("()").split(",")
        for text in (groups[-1] if groups[-1] != name else None, groups[0] if groups[0] != name else None)
    )
    symbols, start, back = context.symbols, context.starts[name], context.returns[name]
    enter = [(symbols[a], symbols[p.name], p.size) for a, p in zip(arguments, callee.parameters, strict=True)]
    leave = [(symbols[p.name], symbols[r], p.size) for r, p in zip(results, callee.results, strict=True)]

    def jump(state: State, lanes: Lanes) -> int:
        for source, target, size in enter:
            state.spaces["local"].copy(source, target, size, lanes)
        state.registers[back][lanes] = here + 1
        return start

    def step(state: State, lanes: Lanes) -> None:
        for source, target, size in leave:
            state.spaces["local"].copy(source, target, size, lanes)

    return [Action(jump=jump), Action(step)]


def barrier(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode the barrier of all threads of a block."""
    if operands.statement.opcode not in ("bar.sync", "barrier.sync", "barrier.sync.aligned", "barrier.cta.sync"):
        raise KeyError(operands.statement.opcode)
    if operands.statement.operands != ("0",):
        raise KeyError(operands.statement.text)
    return [Action(jump=lambda state, lanes: here + 1 + HELD)]


def trap(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode trap."""

    def step(state: State, lanes: Lanes) -> None:
        raise LaneError("trap", 0)

    return [Action(step)]


def nothing(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode what changes nothing where all accesses happen in order."""
    return [Action(lambda state, lanes: None)]
