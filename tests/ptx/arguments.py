"""A launch's arguments: arrays put into global memory and taken out again, parameters as numba flattens them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tests.ptx.integers import Array
from tests.ptx.memory import BUFFER_BITS, EXISTS, STORED, WRITABLE, WRITTEN, GlobalMemory
from tests.ptx.parse import Variable
from tests.ptx.program import Program


class Memory:
    """Numbers of a device that stay from launch to launch: an argument of one value, where they lie.

    Attributes
    ----------
    array : the numbers
    written : (*array.shape, itemsize), of each byte whether it may be read
    begin : which number the argument points to
    """

    def __init__(self, array: Array, written: bool = True, begin: int = 0) -> None:
        self.array, self.written, self.begin = array, np.full((*array.shape, array.itemsize), written), begin


class _Argument(NamedTuple):
    """An array, whether what it holds may be read, and whether just its place is handed over."""

    array: Array
    written: bool | Array
    memory: Memory | None = None


def unwritten(array: Array) -> _Argument:
    """Return an argument that is output: what it holds must not be read before it is written."""
    return _Argument(array, written=False)


class Arguments:
    """Global memory with a launch's arrays, and the bytes of its parameters by name."""

    def __init__(self, program: Program, arguments: tuple[Any, ...]) -> None:
        leaves = list(_leaves(arguments))
        constants = [_Argument(initial.copy(), written=True) for initial in program.buffers]
        buffers = constants + [leaf for leaf in leaves if isinstance(leaf, _Argument)]
        self.memory = GlobalMemory(_extent(buffer.array) for buffer in buffers)
        self._views: list[tuple[_Argument, Array, Array]] = []
        pointers = iter([self._put(number, buffer) for number, buffer in enumerate(buffers)][len(constants) :])
        values: list[Any] = []
        for leaf in leaves:
            values += _values(leaf, next(pointers)) if isinstance(leaf, _Argument) else [leaf]
        if len(values) != len(program.parameters):
            raise TypeError(f"{len(values)} values for {len(program.parameters)} parameters")
        self.parameters = {p.name: _bytes(p, value) for p, value in zip(program.parameters, values, strict=True)}

    def _put(self, number: int, buffer: _Argument) -> int:
        """Copy an array into a buffer and return where its first element is."""
        start = number + 1 << BUFFER_BITS
        if not buffer.array.size:
            return start
        numbers, state, first = self.memory.view(number, buffer.array)
        state[...] = EXISTS | buffer.written * np.uint8(WRITTEN) | buffer.array.flags.writeable * WRITABLE
        if np.any(buffer.written):
            numbers[...] = buffer.array
        self._views.append((buffer, numbers, state))
        return start + first

    def write_back(self) -> None:
        """Copy what was stored, refusing arrays of which another shows a part, which would not have changed."""
        for buffer, numbers, state in self._views:
            stored = (state & STORED) != 0
            if stored.any():
                if sum(np.shares_memory(buffer.array, other.array) for other, _, _ in self._views) > 1:
                    raise ValueError("an array that is written to overlaps another argument")
                np.copyto(buffer.array, numbers, where=stored.any(-1))
                if buffer.memory is not None:
                    buffer.memory.written |= stored


def _leaves(arguments: Iterable[Any]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            yield _Argument(argument, written=True)
        elif isinstance(argument, Memory):
            yield _Argument(argument.array, argument.written, argument)
        elif isinstance(argument, tuple) and not isinstance(argument, _Argument):
            yield from _leaves(argument)
        else:
            yield argument


def _extent(array: Array) -> int:
    spans = (abs(stride) * (n - 1) for n, stride in zip(array.shape, array.strides, strict=True))
    return sum(spans) + array.itemsize if array.size else 0


def _values(leaf: _Argument, pointer: int) -> list[int]:
    """Return a pointer alone, or meminfo, parent, number and size of elements, pointer, shape and strides."""
    array = leaf.array
    if leaf.memory is not None:
        return [pointer + leaf.memory.begin * array.itemsize]
    return [0, 0, array.size, array.itemsize, pointer, *array.shape, *array.strides]


def _bytes(parameter: Variable, value: Any) -> bytes:
    """Return a scalar as the parameter holds it, refusing one of another width."""
    if isinstance(value, int) and parameter.dtype.kind != "f":
        return (value & (1 << 8 * parameter.size) - 1).to_bytes(parameter.size, "little")
    value = value if isinstance(value, np.generic) else parameter.dtype.type(value)
    if value.itemsize != parameter.size:
        raise TypeError(f"{value!r} for a parameter of {parameter.size} bytes")
    return value.tobytes()
