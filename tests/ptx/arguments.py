"""A launch's arguments: arrays put into global memory and taken out again, parameters as numba flattens them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tests.ptx.integers import Array
from tests.ptx.memory import BUFFER_BITS, EXISTS, WRITTEN, GlobalMemory
from tests.ptx.parse import Variable
from tests.ptx.program import Program


class unwritten(NamedTuple):  # noqa: N801
    """An array argument that is output: what it holds must not be read before it is written."""

    array: Array


class Arguments:
    """Global memory with a launch's arrays, and the bytes of its parameters by name."""

    def __init__(self, program: Program, arguments: tuple[Any, ...]) -> None:
        leaves = list(_leaves(arguments))
        arrays = [leaf for leaf in leaves if isinstance(leaf, np.ndarray | unwritten)]
        self._views: list[tuple[Array, Array, Array]] = []
        self.memory = GlobalMemory([len(b) for b in program.buffers] + [_extent(_array(leaf)) for leaf in arrays])
        for number, initial in enumerate(program.buffers):
            numbers, state, _ = self.memory.view(number, np.dtype("u1"), (len(initial),), (1,))
            numbers[:], state[:] = initial, EXISTS | WRITTEN
        pointers = {id(leaf): self._put(len(program.buffers) + k, leaf) for k, leaf in enumerate(arrays)}
        values: list[Any] = []
        for leaf in leaves:
            values += _flat(_array(leaf), pointers[id(leaf)]) if id(leaf) in pointers else [leaf]
        self.parameters = {p.name: _bytes(p, value) for p, value in zip(program.parameters, values, strict=True)}

    def _put(self, buffer: int, leaf: Array | unwritten) -> int:
        """Copy an array into a buffer and return where its first element is."""
        array = _array(leaf)
        if not array.size:
            return buffer + 1 << BUFFER_BITS
        numbers, state, first = self.memory.view(buffer, array.dtype, array.shape, array.strides)
        state[...] = EXISTS
        if not isinstance(leaf, unwritten):
            numbers[...], state[...] = array, EXISTS | WRITTEN
        self._views.append((array, numbers, state))
        return (buffer + 1 << BUFFER_BITS) + first

    def write_back(self) -> None:
        """Copy what is written of the arrays that can be."""
        for array, numbers, state in self._views:
            if array.flags.writeable:
                np.copyto(array, numbers, where=(state & WRITTEN).all(-1))


def _leaves(arguments: Iterable[Any]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, tuple) and not isinstance(argument, unwritten):
            yield from _leaves(argument)
        else:
            yield argument


def _array(leaf: Array | unwritten) -> Array:
    return leaf.array if isinstance(leaf, unwritten) else leaf


def _extent(array: Array) -> int:
    spans = (abs(stride) * (n - 1) for n, stride in zip(array.shape, array.strides, strict=True))
    return sum(spans) + array.itemsize if array.size else 0


def _flat(array: Array, pointer: int) -> list[int]:
    """Return meminfo, parent, number and size of elements, pointer, shape and strides."""
    return [0, 0, array.size, array.itemsize, pointer, *array.shape, *array.strides]


def _bytes(parameter: Variable, value: Any) -> bytes:
    """Return a scalar as the parameter holds it, refusing one of another width."""
    if not isinstance(value, np.generic):
        if parameter.dtype.kind != "f":
            return (value & (1 << 8 * parameter.size) - 1).to_bytes(parameter.size, "little")
        value = parameter.dtype.type(value)
    if value.itemsize != parameter.size:
        raise TypeError(f"{value!r} for a parameter of {parameter.size} bytes")
    return value.tobytes()
