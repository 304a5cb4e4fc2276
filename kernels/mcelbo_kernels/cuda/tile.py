"""The register tile: a block's part of a matrix, of which every thread holds some rows and columns in registers.

Two operands lie in shared memory, a slice of them at a time, one row for each index k of the sum:

    tile[r, c] += left[k, r] right[k, c]

A thread's rows come in runs of four neighbours, so that a load brings all four, and so do its columns; with `run` 1
they lie `across` apart instead, so that neighbouring threads write neighbouring columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mcelbo_kernels.cuda.seam import cuda, device, int32

SLICE = 8  # indices k that lie in shared memory at once
REGISTERS = 65536  # of every multiprocessor since compute capability 7.5
GAP = 4  # numbers between its rows, so that threads that write a column hit different banks


class Tile(NamedTuple):
    """The shape of a block's tile.

    Attributes
    ----------
    rows, columns : int
        Of a thread.
    down, across : int
        Threads of a block, powers of two.
    run : int
        Neighbouring columns of a thread.
    """

    rows: int
    columns: int
    down: int
    across: int
    run: int

    @property
    def height(self) -> int:
        """Rows of a block."""
        return self.rows * self.down

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.columns * self.across

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.down * self.across

    def blocks(self, real: Any) -> int:
        """Return how many blocks are to fit a multiprocessor, which bounds the registers of a thread.

        128 hold a tile of 8 x 8 and what multiplies it. Some epilogues spill beside that, so that tiles which are there
        to keep all multiprocessors busy, rather than each of them, may take 160.
        """
        registers = (128 if self.threads > 128 else 160) * real.bitwidth // 32
        return max(1, int(REGISTERS // (self.threads * registers)))


LARGE = Tile(8, 8, 16, 16, 4)
SMALL = Tile(8, 8, 8, 8, 4)
NARROW = Tile(8, 8, 16, 4, 4)
# of double precision, which takes two registers a number
SMALL_DOUBLE = Tile(8, 4, 8, 16, 4)
NARROW_DOUBLE = Tile(8, 4, 16, 8, 4)


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
    """Return the device functions for a tile."""
    down, across, shift = tile.down, tile.across, tile.across.bit_length() - 1
    row_run, column_run = min(4, tile.rows), tile.run

    # the masks tell the compiler that no index is negative
    @device
    def top():
        return ((cuda.threadIdx.x >> shift) & (down - 1)) * row_run

    @device
    def left():
        return (cuda.threadIdx.x & (across - 1)) * column_run

    @device
    def row(i):
        return i // row_run * row_run * down + i % row_run

    @device
    def column(j):
        return j // column_run * column_run * across + j % column_run

    return Places(top, left, row, column)


def outer_product(tile: Tile) -> Any:
    """Return the device function (acc, a, b, left, right, at_left, at_right): acc[i, j] += left[row i] right[column j].

    `at_left` and `at_right` are where the thread's first row and column stand in shared memory, a (rows,) and
    b (columns,) registers for either.
    """
    rows, columns, place = tile.rows, tile.columns, places(tile)
    row, column = place.row, place.column

    @device
    def outer_add(acc, a, b, left, right, at_left, at_right):
        for i in range(rows):
            a[i] = left[at_left + row(i)]
        for j in range(columns):
            b[j] = right[at_right + column(j)]
        for i in range(rows):
            for j in range(columns):
                acc[i, j] = cuda.fma(a[i], b[j], acc[i, j])

    return outer_add


def written_out(count: int, body: Any) -> Any:
    """Return the device function (state) that calls body(i, state) for 0 <= i < count, at most 8.

    The compiler leaves a loop with so long a body as it is, and would keep in memory what the body indexes by i.
    """

    @device
    def all_of_them(state):
        body(int32(0), state)
        if count > 1:
            body(int32(1), state)
        if count > 2:
            body(int32(2), state)
        if count > 3:
            body(int32(3), state)
        if count > 4:
            body(int32(4), state)
        if count > 5:
            body(int32(5), state)
        if count > 6:
            body(int32(6), state)
        if count > 7:
            body(int32(7), state)

    return all_of_them


def over_tile(tile: Tile, of_row: Any, of_number: Any) -> Any:
    """Return the device function (valid, wide, state) that goes over what a thread holds of a tile, written out.

    For each of its rows r < valid it calls of_row(r, state), and for each of the row's columns c < wide
    of_number(i, j, r, c, value, state), the number's place in the thread's registers and in the tile, with the value
    that of_row returned.
    """
    top, beside, row_of, column_of = places(tile)

    @device
    def number(j, given):
        i, r, value, wide, state = given
        c = beside() + column_of(j)
        if c < wide:
            of_number(i, j, r, c, value, state)

    all_columns = written_out(tile.columns, number)

    @device
    def row(i, given):
        valid, wide, state = given
        r = top() + row_of(i)
        if r < valid:
            all_columns((i, r, of_row(r, state), wide, state))

    all_rows = written_out(tile.rows, row)

    @device
    def go_over(valid, wide, state):
        all_rows((valid, wide, state))

    return go_over
