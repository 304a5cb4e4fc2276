"""Memory that one call leaves to the next: fetched anew from the system, its pages cost more than a pass over them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mcelbo_kernels.problem import Array

CACHE_LINE = 64
# What is left behind at most: a block for each of a few calls at a time, none of them beyond the larger decoders.
BLOCKS_KEPT = 4
BYTES_KEPT = 64 << 20
FLOAT64 = np.dtype(np.float64)

_blocks: list[Array] = []


class Workspace:
    """What a call may write to until it leaves; its arrays must not outlive it."""

    def __enter__(self) -> Workspace:
        try:
            self._block = _blocks.pop()
        except IndexError:
            self._block = aligned_block(0)
        self._used = 0
        return self

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any] = FLOAT64) -> Array:
        """Return uninitialised memory that starts on a cache line, so that no vector straddles two."""
        start, size = self._used, math.prod(shape) * dtype.itemsize
        self._used = start + size + -size % CACHE_LINE
        if self._used <= self._block.size:
            return np.ndarray(shape, dtype, self._block, start)
        return np.ndarray(shape, dtype, aligned_block(size))

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any] = FLOAT64) -> Array:
        """Return such memory filled with zeros."""
        array = self.take(shape, dtype)
        array.fill(0)
        return array

    def __exit__(self, *exception: object) -> None:
        """Let another call have as much memory as this one used."""
        if len(_blocks) < BLOCKS_KEPT:
            more = self._block.size < self._used <= BYTES_KEPT
            _blocks.append(aligned_block(self._used) if more else self._block)


def aligned_block(size: int) -> Array:
    """Return uninitialised bytes that start on a cache line."""
    store = np.empty(size + CACHE_LINE, np.uint8)
    start = -store.ctypes.data % CACHE_LINE
    return store[start : start + size]
