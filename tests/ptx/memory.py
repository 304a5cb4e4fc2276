"""The memory spaces: bytes, and for each of them whether it exists, who wrote it and who read it.

Every access is of one instruction by some lanes at once: `lanes` selects from what a space knows of each lane, and
address i belongs to the i-th lane of the selection. A bad access raises `LaneError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.ptx.integers import Array
from tests.ptx.parse import Variable

BUFFER_BITS = 36  # so far apart lie global buffers: an index that leaves its array lands in no other one
SHARED_WINDOW, LOCAL_WINDOW = 1 << 60, 1 << 61  # where generic addresses of these spaces begin
EXISTS, WRITTEN, WRITABLE, STORED = 1, 2, 4, 8  # of a byte of global memory; what is stored is written
Lanes = Any  # an array of lanes' numbers, or a slice

# A stamp is an interval between barriers and a thread of the block; a reader's may say that there are more readers.
_INTERVAL, _MANY = np.uint32(2048), np.uint32(1024)
_LANE_BITS = np.uint32(11)


class LaneError(Exception):
    """What is wrong with the access of the lane at a position of the selection."""

    def __init__(self, what: str, position: int) -> None:
        super().__init__(what)
        self.what, self.position = what, position


def refuse(bad: Array, what: str) -> None:
    """Raise LaneError for the first lane that is bad."""
    if bad.any():
        raise LaneError(what, int(bad.argmax()) // (bad.size // len(bad)))


def place(variables: Iterable[Variable], fence: int) -> dict[str, int]:
    """Return the addresses of variables, none aligned better than declared, with so many bytes or more between them."""
    addresses, end = {}, 0
    for variable in variables:
        step = 2 * variable.align
        addresses[variable.name] = -(-(end + fence) // step) * step + variable.align
        end = addresses[variable.name] + variable.size
    return addresses


class GlobalMemory:
    """Buffers, of which number k begins at address (k + 1) << BUFFER_BITS."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self.limits = np.array([0, *sizes, 0], np.uint64)
        self.starts = np.cumsum(np.concatenate([[0], -(-self.limits[:-1] // 256) * 256])).astype(np.uint64)
        total = int(self.starts[-1]) + 256
        self.data, self.state = np.zeros((2, total), np.uint8)

    def view(self, buffer: int, like: Array) -> tuple[Array, Array, int]:
        """Return numbers and states of a buffer as elements laid out like an array's, and the first one's offset."""
        shape, strides = like.shape, like.strides
        first = -sum(min(0, (n - 1) * stride) for n, stride in zip(shape, strides, strict=True))
        start = int(self.starts[buffer + 1]) + first
        numbers = np.ndarray(shape, like.dtype, self.data.data, start, strides)
        states = np.ndarray((*shape, like.itemsize), np.uint8, self.state.data, start, (*strides, 1))
        return numbers, states, first

    def load(self, address: Array, lanes: Lanes, dtype: np.dtype[Any], count: int) -> Array:
        """Return (lanes, count) numbers."""
        index = self._index(address, dtype.itemsize * count)
        self._demand(index, dtype, count, EXISTS, "out of bounds of global memory")
        self._demand(index, dtype, count, WRITTEN, "read of global memory that nothing wrote")
        return self.data.view(dtype).reshape(-1, count)[index]

    def store(self, address: Array, lanes: Lanes, values: Array) -> None:
        """Write (lanes, count) numbers."""
        count = values.shape[1]
        index = self._index(address, values.itemsize * count)
        self._demand(index, values.dtype, count, EXISTS, "out of bounds of global memory")
        self._demand(index, values.dtype, count, WRITABLE, "write to a read-only array")
        self.data.view(values.dtype).reshape(-1, count)[index] = values
        self._states(values.dtype, count)[index] = _repeated(EXISTS | WRITTEN | WRITABLE | STORED, values.dtype)

    def _index(self, address: Array, size: int) -> Array:
        refuse((address & np.uint64(size - 1)) != 0, f"address that is no multiple of {size}")
        buffer = np.minimum(address >> np.uint64(BUFFER_BITS), len(self.limits) - 1)
        offset = address & np.uint64((1 << BUFFER_BITS) - 1)
        refuse(offset + np.uint64(size) > self.limits[buffer], "out of bounds of global memory")
        return (self.starts[buffer] + offset) // np.uint64(size)

    def _demand(self, index: Array, dtype: np.dtype[Any], count: int, state: int, what: str) -> None:
        pattern = _repeated(state, dtype)
        refuse((self._states(dtype, count)[index] & pattern) != pattern, what)

    def _states(self, dtype: np.dtype[Any], count: int) -> Array:
        return self.state.view(f"u{dtype.itemsize}").reshape(-1, count)


def _repeated(state: int, dtype: np.dtype[Any]) -> Array:
    return np.full(dtype.itemsize, state, np.uint8).view(f"u{dtype.itemsize}")


class _Rows:
    """Memory of which every row has the same variables; bookkeeping is by granules, the smallest access's bytes."""

    def __init__(self, name: str, variables: dict[int, int], rows: int, row_of_lane: Array, granule: int) -> None:
        self.name, self.granule = name, granule
        end = max((start + size for start, size in variables.items()), default=0)
        self.row = -(-end // 32) * 32 + 32
        self.base = row_of_lane.astype(np.uint64) * np.uint64(self.row)
        self.data = np.zeros(rows * self.row, np.uint8)
        exists = np.zeros(self.row, bool)
        for start, size in variables.items():
            exists[start : start + size] = True
        self.exists = np.tile(exists.reshape(-1, granule).all(1), rows)

    def _locate(self, address: Array, lanes: Lanes, size: int) -> tuple[Array, Array]:
        """Return the index of each access in units of its size, and the granules (lanes, some) it touches."""
        refuse((address & np.uint64(size - 1)) != 0, f"address that is no multiple of {size}")
        outside = f"out of bounds of {self.name} memory"
        refuse(address > np.uint64(self.row - size), outside)
        index = (self.base[lanes] + address) // np.uint64(size)
        granules = size // self.granule
        touched = (index * np.uint64(granules))[:, None] + np.arange(granules, dtype=np.uint64)
        refuse(~self.exists[touched], outside)
        return index, touched

    def _numbers(self, dtype: np.dtype[Any], count: int) -> Array:
        return self.data.view(dtype).reshape(-1, count)


class LocalMemory(_Rows):
    """Each lane's own memory, and the parameters of functions it calls."""

    def __init__(self, variables: dict[int, int], lanes: int, granule: int) -> None:
        super().__init__("local", variables, lanes, np.arange(lanes), granule)
        self.written = np.zeros(len(self.exists), bool)

    def load(self, address: Array, lanes: Lanes, dtype: np.dtype[Any], count: int) -> Array:
        """Return (lanes, count) numbers."""
        index, touched = self._locate(address, lanes, dtype.itemsize * count)
        refuse(~self.written[touched], "read of local memory that nothing wrote")
        return self._numbers(dtype, count)[index]

    def store(self, address: Array, lanes: Lanes, values: Array) -> None:
        """Write (lanes, count) numbers."""
        index, touched = self._locate(address, lanes, values.itemsize * values.shape[1])
        self.written[touched] = True
        self._numbers(values.dtype, values.shape[1])[index] = values

    def copy(self, source: int, target: int, size: int, lanes: Lanes) -> None:
        """Copy bytes and whether they are written."""
        for array, unit in ((self.data, 1), (self.written, self.granule)):
            rows = array.reshape(len(self.base), -1)
            to, origin = (slice(start // unit, (start + size) // unit) for start in (target, source))
            rows[lanes, to] = rows[lanes, origin]


class SharedMemory(_Rows):
    """A block's memory, with the last writer and the readers of each granule."""

    def __init__(self, variables: dict[int, int], blocks: int, threads: int, granule: int) -> None:
        block, thread = np.divmod(np.arange(blocks * threads), threads)
        super().__init__("shared", variables, blocks, block, granule)
        self.stamp = thread.astype(np.uint32) + _INTERVAL
        self.writer, self.reader = np.zeros((2, len(self.exists)), np.uint32)

    def next_interval(self) -> None:
        """Let a barrier come between what was and what will be."""
        self.stamp += _INTERVAL

    def load(self, address: Array, lanes: Lanes, dtype: np.dtype[Any], count: int) -> Array:
        """Return (lanes, count) numbers."""
        index, touched = self._locate(address, lanes, dtype.itemsize * count)
        stamp = self.stamp[lanes][:, None]
        writer = self.writer[touched]
        refuse(writer == 0, "read of shared memory that nothing wrote")
        refuse(_by_another(writer, stamp), "race: read of what another thread writes before a barrier")
        self._remember_readers(touched, stamp)
        return self._numbers(dtype, count)[index]

    def store(self, address: Array, lanes: Lanes, values: Array) -> None:
        """Write (lanes, count) numbers."""
        index, touched = self._locate(address, lanes, values.itemsize * values.shape[1])
        stamp = self.stamp[lanes][:, None]
        twice = "race: write of what another thread writes before a barrier"
        refuse(_by_another(self.writer[touched], stamp), twice)
        refuse(_by_another(self.reader[touched], stamp), "race: write of what another thread reads before a barrier")
        self.writer[touched] = stamp
        refuse(self.writer[touched] != stamp, twice)
        self._numbers(values.dtype, values.shape[1])[index] = values

    def _remember_readers(self, touched: Array, stamp: Array) -> None:
        reader = self.reader[touched]
        known = np.where(_by_another(reader, stamp), reader | _MANY, stamp)
        self.reader[touched] = known
        several = touched[self.reader[touched] != known]
        self.reader[several] |= _MANY


def _by_another(found: Array, stamp: Array) -> Array:
    """Whether stamps are of the same interval but not of the same thread alone."""
    return (found >> _LANE_BITS == stamp >> _LANE_BITS) & (found != stamp)


class GenericMemory:
    """All spaces in one range of addresses."""

    def __init__(self, spaces: Mapping[str, Any]) -> None:
        starts = {"global": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW}
        self.windows = [(start, spaces[name]) for name, start in starts.items()]

    def _parts(self, address: Array, lanes: Lanes) -> Iterator[tuple[Any, Array, Array, Array]]:
        """Yield a space, which of the addresses are its own, these within it, and their lanes."""
        numbers = np.arange(len(address)) if isinstance(lanes, slice) else lanes
        window = (address >= SHARED_WINDOW).astype(int) + (address >= LOCAL_WINDOW)
        for number, (start, space) in enumerate(self.windows):
            own = np.flatnonzero(window == number)
            if own.size:
                yield space, own, address[own] - np.uint64(start), numbers[own]

    def load(self, address: Array, lanes: Lanes, dtype: np.dtype[Any], count: int) -> Array:
        """Return (lanes, count) numbers."""
        result = np.zeros((len(address), count), dtype)
        for space, own, inside, numbers in self._parts(address, lanes):
            with _among(own):
                result[own] = space.load(inside, numbers, dtype, count)
        return result

    def store(self, address: Array, lanes: Lanes, values: Array) -> None:
        """Write (lanes, count) numbers."""
        for space, own, inside, numbers in self._parts(address, lanes):
            with _among(own):
                space.store(inside, numbers, values[own])


@contextmanager
def _among(own: Array) -> Iterator[None]:
    """Let an error that names one of the selection's own positions name it among all."""
    try:
        yield
    except LaneError as error:
        raise LaneError(error.what, int(own[error.position])) from None
