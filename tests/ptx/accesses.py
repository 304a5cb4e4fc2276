"""Decoders of loads, stores and conversions of addresses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.ptx.instructions import Action, Context
from tests.ptx.memory import LOCAL_WINDOW, SHARED_WINDOW, Lanes
from tests.ptx.operands import Operands, State, base_and_offset
from tests.ptx.parse import DTYPES

_HINTS = {"nc", "volatile", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "weak", "relaxed", "cta", "gpu", "sys"}
_WINDOWS = {"global": 0, "const": 0, "param": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW}


class _Access(NamedTuple):
    """Space, type and number of elements of a load or store."""

    space: str
    type_name: str
    count: int


def _access(operands: Operands, context: Context) -> _Access:
    parts = operands.statement.opcode.split(".")[1:]
    space = next((part for part in parts if part in _WINDOWS), "generic")
    vector = next((part for part in parts if part in ("v2", "v4")), "v1")
    if set(parts) - _HINTS - {space, vector, parts[-1]}:
        raise KeyError(operands.statement.opcode)
    space = {"const": "global", "param": "local"}.get(space, space)
    for name in ("shared", "local") if space == "generic" else (space,):
        context.granules[name] = min(context.granules.get(name, 16), DTYPES[parts[-1]].itemsize)
    return _Access(space, parts[-1], int(vector[1:]))


def load(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode ld, of the entry's parameters too, which are the same for all lanes."""
    space, type_name, count = _access(operands, context)
    name, offset = base_and_offset(operands[1])
    dtype = DTYPES[type_name]
    puts = [operands.destination(text, type_name) for text in operands.vector(operands[0])]
    if name in context.entry_parameters:

        def of_parameter(state: State, lanes: Lanes) -> None:
            for put, value in zip(puts, np.frombuffer(state.parameters[name], dtype, count, offset), strict=True):
                put(state, lanes, value[None])

        return [Action(of_parameter)]
    address = operands.address(operands[1])

    def step(state: State, lanes: Lanes) -> None:
        values = state.spaces[space].load(address(state, lanes), lanes, dtype, count)
        for put, column in zip(puts, values.T, strict=True):
            put(state, lanes, column)

    return [Action(step)]


def store(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode st."""
    space, type_name, count = _access(operands, context)
    address = operands.address(operands[0])
    sources = [operands.source(text, type_name) for text in operands.vector(operands[1])]
    if len(sources) != count:
        raise KeyError(operands.statement.text)

    def step(state: State, lanes: Lanes) -> None:
        values = np.empty((state.count(lanes), count), DTYPES[type_name])
        for column, source in zip(values.T, sources, strict=True):
            column[:] = source(state, lanes)
        state.spaces[space].store(address(state, lanes), lanes, values)

    return [Action(step)]


def convert_address(operands: Operands, here: int, context: Context) -> list[Action]:
    """Decode cvta, from a space's address to a generic one or back."""
    *to, space, type_name = operands.statement.opcode.split(".")[1:]
    window = np.array([_WINDOWS[space]], np.uint64)
    source, put = operands.source(operands[1], type_name), operands.destination(operands[0], type_name)
    add = np.subtract if to == ["to"] else np.add
    return [Action(lambda state, lanes: put(state, lanes, add(source(state, lanes), window)))]
