"""The register tile: a block's part of a matrix, of which every thread holds some rows and columns in registers.

Two operands lie in shared memory, a slice of them at a time, one row for each index k of the sum:

    tile[r, c] += left[k, r] right[k, c]

A thread's rows come in runs of four neighbours, so that a load brings all four, and so do its columns.

A block may have several groups of threads. All of them hold the whole tile, each the sum over slices of its own; then
every thread adds up, and finishes, some of the rows that it holds of the tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mcelbo_kernels.cuda.seam import cuda, device

SLICE = 8  # indices k that lie in shared memory at once
REGISTERS = 65536  # of every multiprocessor since compute capability 7.5
RUN = 4  # neighbouring rows or columns of a thread
GAP = 4  # numbers between its rows, so that threads that write a column hit different banks


class Tile(NamedTuple):
    """The shape of a block's tile.

    Attributes
    ----------
    rows, columns : int
        Of a thread, even numbers.
    down, across : int
        Threads of a group, powers of two.
    groups : int
        Of threads that share out the sum, a power of two.
    """

    rows: int
    columns: int
    down: int
    across: int
    groups: int = 1

    @property
    def height(self) -> int:
        """Rows of a block."""
        return self.rows * self.down

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.columns * self.across

    @property
    def run(self) -> int:
        """Neighbouring columns of a thread."""
        return min(RUN, self.columns)

    @property
    def members(self) -> int:
        """Threads of a group."""
        return self.down * self.across

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.members * self.groups

    @property
    def finished(self) -> int:
        """Rows that a thread finishes."""
        return self.rows // self.groups

    def blocks(self, real: Any, crowded: bool = False) -> int:
        """Return how many blocks are to fit a multiprocessor, which bounds the registers of a thread.

        128 hold a tile of 8 x 8 and what multiplies it. Some epilogues spill beside that, so that tiles which are there
        to keep all multiprocessors busy, rather than each of them, may take 160. Four groups finish few rows each, and
        do not spill, but for `crowded` kernels.
        """
        few = self.threads > 128 and (self.groups == 1 or not crowded)
        return max(1, int(REGISTERS // (self.threads * (128 if few else 160) * real.bitwidth // 32)))


LARGE = Tile(8, 8, 16, 16)
SMALL = Tile(8, 8, 8, 8)
NARROW = Tile(8, 8, 16, 4)
# of double precision, which takes two registers a number
SMALL_DOUBLE = Tile(8, 4, 8, 16)
NARROW_DOUBLE = Tile(8, 4, 16, 8)


class Places(NamedTuple):
    """Where a thread's rows and columns lie in the tile, as device functions.

    Attributes
    ----------
    top, left : () -> the first row and column
    row, column : (i) -> how far the i-th lies behind them
    """

    top: Any
    left: Any
    row: Any
    column: Any


def places(tile: Tile) -> Places:
    """Return the device functions for a tile.

    A warp has at most 8 threads across. Shared memory gives a half-warp 16 bytes a thread at once if all its neighbours
    of numbers 2i and 2i + 1, or 2 apart, ask for the same, and a quarter-warp otherwise: so the lowest bit of a
    thread's number chooses a row, and the next one a column.
    """
    down, across = tile.down, tile.across
    row_run, column_run = min(RUN, tile.rows), tile.run
    inner, wide = min(8, across) - 1, across > 8
    behind = inner.bit_length() + 1  # the bit behind those of a warp's columns

    # the masks tell the compiler that no index is negative
    @device
    def top():
        t = cuda.threadIdx.x
        upper = ((t >> behind) & 1) | ((t >> (behind + 2)) << 1) if wide else t >> behind
        return (((upper << 1) | (t & 1)) & (down - 1)) * row_run

    @device
    def left():
        t = cuda.threadIdx.x
        outer = ((t >> (behind + 1)) & 1) << 3 if wide else 0
        return (((t >> 1) & inner) | outer) * column_run

    @device
    def row(i):
        return i // row_run * row_run * down + i % row_run

    @device
    def column(j):
        return j // column_run * column_run * across + j % column_run

    return Places(top, left, row, column)


def group_of(tile: Tile) -> Any:
    """Return the device function () -> the thread's group."""
    shift, last = tile.members.bit_length() - 1, tile.groups - 1

    @device
    def own():
        return (cuda.threadIdx.x >> shift) & last

    return own


def places_to_finish(tile: Tile) -> Places:
    """Return the device functions for what a thread finishes: of the rows that it holds the share of its group."""
    place, own, share = places(tile), group_of(tile), tile.finished
    if tile.groups == 1:
        return place
    top_of, row_of = place.top, place.row

    @device
    def top():
        return top_of() + row_of(own() * share)

    # a share is no longer than a run
    @device
    def row(i):
        return i

    return Places(top, place.left, row, place.column)


def moved(real: Any) -> Any:
    """Return the device function (number) that moves a finished sum to a register of its own, before it is stored.

    A vector's numbers lie in neighbouring registers. If sums had to, the compiler would find them in the bank of what
    they are multiplied by, see `outer_product`. Adding zero is what no compiler leaves out.
    """
    zero = real(0)

    @device
    def move(number):
        return number + zero

    return move


def outer_product(tile: Tile) -> Any:
    """Return the device function (acc, a, b, shared, at_left, at_right): acc[i, j] += left[row i] right[column j].

    `at_left` and `at_right` are where the thread's first row and column stand in shared memory, a (rows,) and
    b (columns,) registers for either.

    Registers lie in two banks, and a multiply-add whose three come from one of them waits, but for one that it shares
    with the multiply-add before. So the columns come one after the other, by turns down the even rows and then the odd
    ones, and back: of all orders that were tried compilers found the fewest conflicts in this one.
    """
    rows, columns, half, place = tile.rows, tile.columns, tile.rows // 2, places(tile)
    row, column = place.row, place.column

    @device
    def outer_add(acc, a, b, shared, at_left, at_right):
        for i in range(rows):
            a[i] = shared[at_left + row(i)]
        for j in range(columns):
            b[j] = shared[at_right + column(j)]
        for j in range(columns):
            for turn in range(rows):
                at = turn if j % 2 == 0 else rows - 1 - turn
                i = 2 * (at % half) + at // half
                acc[i, j] = cuda.fma(a[i], b[j], acc[i, j])

    return outer_add
