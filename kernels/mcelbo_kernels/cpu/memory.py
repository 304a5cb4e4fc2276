"""Memory that one call leaves to the next of its kind: fetched anew from the system, its pages cost more than a pass.

Nor does a small call have the time to make some twenty arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from mcelbo_kernels.problem import Array

CACHE_LINE = 64
# What is left behind at most: the buffers of a few kinds of call, and no more than the larger decoders need.
KINDS_KEPT = 8
BYTES_KEPT = 64 << 20
FLOAT64 = np.dtype(np.float64)


class Sized(Protocol):
    """What can be left behind."""

    @property
    def nbytes(self) -> int:
        """How much memory it holds."""


Buffers = TypeVar("Buffers", bound=Sized)

# By kind, in the order in which they were left. Each operation on it is atomic, so that calls need no lock.
_left: dict[Hashable, Sized] = {}


def take(kind: Hashable, make: Callable[[], Buffers]) -> Buffers:
    """Return what a call of this kind left behind, which nobody else gets then, or else what `make` makes."""
    found = _left.pop(kind, None)
    return make() if found is None else cast(Buffers, found)


def leave(kind: Hashable, buffers: Sized) -> None:
    """Leave buffers to the next call of this kind, and drop those that have waited longest if it is too much."""
    if buffers.nbytes > BYTES_KEPT:
        return
    _left.pop(kind, None)
    _left[kind] = buffers
    waiting = list(_left.items())
    while len(waiting) > KINDS_KEPT or sum(others.nbytes for _, others in waiting) > BYTES_KEPT:
        _left.pop(waiting.pop(0)[0], None)


class Workspace:
    """Makes the arrays of a kind of call, and gives them again in the same order after `restart`.

    Attributes
    ----------
    nbytes : int
        How much memory they hold.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._made: list[Array] = []
        self._given = 0

    def restart(self) -> Workspace:
        """Let the next call of the kind ask for its arrays."""
        self._given = 0
        return self

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any] = FLOAT64) -> Array:
        """Return uninitialised memory that starts on a cache line, so that no vector straddles two."""
        if self._given == len(self._made):
            size = math.prod(shape) * dtype.itemsize
            self.nbytes += size
            self._made.append(np.ndarray(shape, dtype, aligned_block(size)))
        self._given += 1
        return self._made[self._given - 1]

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any] = FLOAT64) -> Array:
        """Return such memory filled with zeros."""
        array = self.take(shape, dtype)
        array.fill(0)
        return array


def aligned_block(size: int) -> Array:
    """Return uninitialised bytes that start on a cache line."""
    store = np.empty(size + CACHE_LINE, np.uint8)
    start = -store.ctypes.data % CACHE_LINE
    return store[start : start + size]
