"""Memory that one call leaves to the next: fetched anew from the system, its pages cost more than a pass over them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import DTypeLike

from mcelbo_kernels.problem import Array

CACHE_LINE = 64
# What is left behind at most: a block for each of a few calls at a time, none of them beyond the larger decoders.
BLOCKS_KEPT = 4
BYTES_KEPT = 64 << 20

_blocks: list[Array] = []


class Workspace:
    """What a call may write to until it returns; its arrays must not outlive it."""

    def __init__(self, block: Array) -> None:
        self._block = block
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return uninitialised memory that starts on a cache line, so that no vector straddles two."""
        kind = np.dtype(dtype)
        start, size = self._used, math.prod(shape) * kind.itemsize
        self._used += -(-size // CACHE_LINE) * CACHE_LINE
        room = self._block[start : start + size] if self._used <= self._block.size else aligned_block(size)
        return room.view(kind).reshape(shape)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike = np.float64) -> Array:
        """Return such memory filled with zeros."""
        array = self.take(shape, dtype)
        array.fill(0)
        return array

    def leave(self) -> None:
        """Let another call have as much memory as this one used."""
        if self._used <= BYTES_KEPT and len(_blocks) < BLOCKS_KEPT:
            _blocks.append(self._block if self._used <= self._block.size else aligned_block(self._used))


@contextmanager
def workspace() -> Iterator[Workspace]:
    """Lend the memory that an earlier call left; what does not fit is allocated."""
    try:
        block = _blocks.pop()
    except IndexError:
        block = aligned_block(0)
    borrowed = Workspace(block)
    yield borrowed
    borrowed.leave()


def aligned_block(size: int) -> Array:
    """Return uninitialised bytes that start on a cache line."""
    store = np.empty(size + CACHE_LINE, np.uint8)
    start = -store.ctypes.data % CACHE_LINE
    return store[start : start + size]
