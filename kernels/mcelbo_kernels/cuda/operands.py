"""How an operand's slices come from global into shared memory: fetched into registers, then put down.

Between the two a thread computes on the slice before, so that it need not wait. A slice is SLICE indices k of the sum
by `length` rows or columns of the tile, and lies in shared memory at [k, row]. What lies outside the matrix is zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mcelbo_kernels.cuda.seam import cuda, device, int32
from mcelbo_kernels.cuda.tile import GAP, SLICE, Tile


class Operand(NamedTuple):
    """An operand of a product, as device functions.

    Every group of threads has slices of its own, between two of which lie those of the others.

    A source is (matrix, first, valid, stride): the tile's rows or columns are first to first + valid - 1, and the
    matrix's rows lie `stride` numbers apart.

    Attributes
    ----------
    start : (source, k) -> int
        Where a thread's share of index k begins.
    fetch : (staged, source, at, left, before) -> int
        Load a thread's share of a slice that begins `at` into `staged` (share,); return where the group's next slice
        begins. From the first group's slice on `left` indices are within the sum, this group's begins behind `before`.
    put : (staged, shared, base) -> None
        Store it to SLICE rows of shared memory, of which the first begins at number `base`.
    share : int
        Numbers of a slice for each thread.
    """

    start: Any
    fetch: Any
    put: Any
    share: int


def along_sum(length: int, tile: Tile, real: Any) -> Operand:
    """Return the operand of a matrix (rows, k): neighbours in memory are neighbours in the sum."""
    threads, pitch, step = tile.members, length + GAP, SLICE * tile.groups
    share, apart = length * SLICE // threads, threads // SLICE
    shift, last, mask = SLICE.bit_length() - 1, SLICE - 1, threads - 1
    zero = real(0)

    @device
    def start(source, k):
        _matrix, first, _valid, stride = source
        t = cuda.threadIdx.x & mask
        return (first + (t >> shift)) * stride + (k + (t & last))

    @device
    def fetch(staged, source, at, left, before):
        matrix, _first, valid, stride = source
        # alike for all threads, because addresses take further instructions where warps may part
        if valid == length and left >= step:
            for e in range(share):
                staged[e] = matrix[at + e * apart * stride]
        else:
            t = cuda.threadIdx.x & mask
            # what is left behind the thread's first number is compared with constants
            room = int32((valid if int32((t & last) + before) < left else int32(0)) - int32(t >> shift))
            for e in range(share):
                staged[e] = matrix[at + e * apart * stride] if int32(e * apart) < room else zero
        return at + step

    @device
    def put(staged, shared, base):
        t = cuda.threadIdx.x & mask
        start = base + (t & last) * pitch + (t >> shift)
        for e in range(share):
            shared[start + e * apart] = staged[e]

    return Operand(start, fetch, put, share)


def across_sum(length: int, tile: Tile, real: Any) -> Operand:
    """Return the operand of a matrix (k, columns): neighbours in memory are neighbours in the tile.

    Where there are more columns than threads, each takes some, `threads` apart.
    """
    threads, pitch, step = tile.members, length + GAP, SLICE * tile.groups
    share, each, apart = length * SLICE // threads, *spans(length, threads)
    shift, last, mask = min(length, threads).bit_length() - 1, min(length, threads) - 1, threads - 1
    zero = real(0)

    @device
    def start(source, k):
        _matrix, first, _valid, stride = source
        t = cuda.threadIdx.x & mask
        return first + (k + (t >> shift)) * stride + (t & last)

    @device
    def fetch(staged, source, at, left, before):
        matrix, _first, valid, stride = source
        # alike for all threads, because addresses take further instructions where warps may part
        if valid == length and left >= step:
            for e in range(share):
                staged[e] = matrix[at + e // each * apart * stride + e % each * threads]
        else:
            t = cuda.threadIdx.x & mask
            room, rows = int32(valid - int32(t & last)), int32(left - before - int32(t >> shift))
            for e in range(share):
                column, row = int32(e % each * threads), int32(e // each * apart)
                place = at + e // each * apart * stride + e % each * threads
                staged[e] = matrix[place] if column < room and row < rows else zero
        return at + step * stride

    @device
    def put(staged, shared, base):
        t = cuda.threadIdx.x & mask
        start = base + (t >> shift) * pitch + (t & last)
        for e in range(share):
            shared[start + e // each * apart * pitch + e % each * threads] = staged[e]

    return Operand(start, fetch, put, share)


def spans(length: int, threads: int) -> tuple[int, int]:
    """Return how many columns of a row a thread loads, and how many rows its loads of one column lie apart."""
    return max(1, length // threads), max(1, threads // length)


def weighted_columns(length: int, tile: Tile, real: Any, upstream: bool) -> Operand:
    """Return the operand of a matrix (k, columns) whose rows are multiplied by factors g, and each column added up.

    A source goes on with (g, begin, totals): row k has the factor g[begin + k], where there is any, and a thread adds
    what it loads to totals, one for each of its columns.
    """
    threads, step = tile.members, SLICE * tile.groups
    plain, (each, apart) = across_sum(length, tile, real), spans(length, threads)
    start_plain, fetch_plain, share = plain.start, plain.fetch, plain.share
    shift, mask = min(length, threads).bit_length() - 1, threads - 1

    @device
    def start(source, k):
        matrix, first, valid, stride, _g, begin, _totals = source
        return start_plain((matrix, first, valid, stride), k), begin + k

    @device
    def fetch(staged, source, at, left, before):
        matrix, first, valid, stride, g, _begin, totals = source
        place, row = at
        following = fetch_plain(staged, (matrix, first, valid, stride), place, left, before)
        own = (cuda.threadIdx.x & mask) >> shift
        for e in range(share):
            if upstream and int32(own + before + e // each * apart) < left:
                staged[e] *= g[row + own + e // each * apart]
            totals[e % each] += staged[e]
        return following, row + step

    return Operand(start, fetch, plain.put, share)
