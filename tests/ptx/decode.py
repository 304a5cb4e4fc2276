"""Statements decoded: each becomes functions that act on a machine's state for the lanes that execute it."""

from __future__ import annotations

import numpy as np

from tests.ptx import accesses, control
from tests.ptx.instructions import Action, Context, Decoder, Instruction
from tests.ptx.memory import Lanes
from tests.ptx.operands import Operands, State, register_source
from tests.ptx.operations import operation
from tests.ptx.parse import DTYPES, Statement


def decode(statement: Statement, here: int, context: Context) -> list[Instruction]:
    """Return the instructions, the first of them at place `here`, that a statement is.

    Raises
    ------
    NotImplementedError : for one that is not known
    """
    operands = Operands(statement, context.symbols, context.dtypes)
    root = statement.opcode.split(".")[0]
    try:
        guard = _guard(statement)
        actions = _DECODERS.get(root, _compute)(operands, here, context)
    except (LookupError, ValueError) as error:
        raise NotImplementedError(f"line {statement.line}: {statement.text}") from error
    return [Instruction(statement, guard, action) for action in actions]


def _guard(statement: Statement) -> tuple[int, bool] | None:
    name = statement.guard.lstrip("!")
    return (statement.registers[name], name != statement.guard) if name else None


def _compute(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode what is a function of its sources alone."""
    found = operation(operands.statement.opcode)
    texts = iter(operands.statement.operands[1:])
    carry = register_source(context.carry, np.dtype(bool), np.dtype(bool))
    sources = [carry if name == "carry" else operands.source(next(texts, ""), name) for name in found.sources]
    if next(texts, None):
        raise KeyError(operands.statement.text)
    names = operands[0].split("|")
    puts = [operands.destination(name, type_name) for name, type_name in zip(names, found.results, strict=False)]
    if "carry" in found.results:
        puts.append(lambda state, lanes, values: state.registers[context.carry].__setitem__(lanes, values))
    function = found.function
    if len(found.results) == 1:
        (put,) = puts
        return [Action(lambda state, lanes: put(state, lanes, function(*[s(state, lanes) for s in sources])))]

    def step(state: State, lanes: Lanes) -> None:
        for put, values in zip(puts, function(*[s(state, lanes) for s in sources]), strict=False):
            put(state, lanes, values)

    return [Action(step)]


def _move(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode mov, which also packs and unpacks vectors."""
    _, type_name = operands.statement.opcode.split(".")
    targets, sources = (operands.vector(operands[position]) for position in (0, 1))
    parts = max(len(targets), len(sources))
    part = type_name if parts == 1 else f"b{8 * DTYPES[type_name].itemsize // parts}"
    reads = [operands.source(text, part if len(sources) > 1 else type_name) for text in sources]
    puts = [operands.destination(text, part if len(targets) > 1 else type_name) for text in targets]
    if parts == 1:
        (read,), (put,) = reads, puts
        return [Action(lambda state, lanes: put(state, lanes, read(state, lanes)))]
    to = DTYPES[part if len(targets) > 1 else type_name]

    def step(state: State, lanes: Lanes) -> None:
        whole = np.stack(np.broadcast_arrays(*(read(state, lanes) for read in reads)), axis=1)
        for put, values in zip(puts, whole.view(to).T, strict=True):
            put(state, lanes, values)

    return [Action(step)]


_DECODERS: dict[str, Decoder] = {
    "mov": _move,
    "ld": accesses.load,
    "st": accesses.store,
    "cvta": accesses.convert_address,
    "bra": control.branch,
    "brx": control.branch_by_index,
    "ret": control.leave,
    "exit": control.leave,
    "call": control.call,
    "bar": control.barrier,
    "barrier": control.barrier,
    "trap": control.trap,
    "membar": control.nothing,
    "fence": control.nothing,
    "": control.nothing,  # a directive
}
