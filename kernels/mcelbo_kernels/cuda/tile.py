"""The register tile: a block's part of a matrix, of which every thread holds some rows and columns in registers.

Two operands lie in shared memory, a slice of them at a time, one row for each index k of the sum:

    tile[r, c] += left[k, r] right[k, c]

A thread's rows come in runs of four neighbours, so that a load brings all four, and so do its columns; with `run` 1
they lie `across` apart instead, so that neighbouring threads write neighbouring columns.

A block may have several groups of threads. All of them hold the whole tile, each the sum over slices of its own; then
every thread adds up, and finishes, some of the rows that it holds of the tile.
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
        Threads of a group, powers of two.
    run : int
        Neighbouring columns of a thread.
    groups : int
        Of threads that share out the sum, a power of two.
    """

    rows: int
    columns: int
    down: int
    across: int
    run: int
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
        to keep all multiprocessors busy, rather than each of them, may take 160. Groups finish few rows each and do not
        spill, but for `crowded` kernels.
        """
        few = not crowded if self.groups > 1 else self.threads > 128
        return max(1, int(REGISTERS // (self.threads * (128 if few else 160) * real.bitwidth // 32)))


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
    """Return the device functions for a tile.

    A warp has at most 8 threads across. Shared memory gives a half-warp 16 bytes a thread at once if all its neighbours
    of numbers 2i and 2i + 1, or 2 apart, ask for the same, and a quarter-warp otherwise: so the lowest bit of a
    thread's number chooses a row, and the next one a column.
    """
    down, across = tile.down, tile.across
    row_run, column_run = min(4, tile.rows), tile.run
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


def outer_product(tile: Tile) -> Any:
    """Return the device function (acc, a, b, shared, at_left, at_right): acc[i, j] += left[row i] right[column j].

    `at_left` and `at_right` are where the thread's first row and column stand in shared memory, a (rows,) and
    b (columns,) registers for either.
    """
    rows, columns, place = tile.rows, tile.columns, places(tile)
    row, column = place.row, place.column

    @device
    def outer_add(acc, a, b, shared, at_left, at_right):
        for i in range(rows):
            a[i] = shared[at_left + row(i)]
        for j in range(columns):
            b[j] = shared[at_right + column(j)]
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


def over_tile(tile: Tile, real: Any, reads: bool, of_row: Any, load: Any, leave: Any) -> Any:
    """Return the device function (valid, wide, state) that goes over what a thread finishes of a tile, written out.

    For each of its rows r it calls of_row(r, state) -> place once; for each of the row's columns c < wide
    load(kept, at, c, place, state), where it reads, which loads kept[at], zero outside; and for all columns
    leave(i, j, inside, across, c, place, kept, at, state). There i and j are the number's place in the thread's
    registers, `inside` tells whether the matrix has it, and `across` whether it has at least the column. In place of
    rows below the last one that is taken again.

    A thread waits for the loads of a row at once; where it finishes few rows and loads little for each, so that it has
    registers for it, it loads the next one meanwhile.
    """
    top, beside, row_of, column_of = places_to_finish(tile)
    rows, columns, zero, ahead = tile.finished, tile.columns, real(0), int(tile.groups > 1 and reads)
    size = (1 + ahead) * columns if reads else 1

    @device
    def load_number(j, given):
        i, place, kept, room, state = given
        at = (i & ahead) * columns + j
        kept[at] = zero
        # the columns that are left of the matrix, in place of the thread's, are compared with a constant
        if int32(column_of(j)) < room:
            load(kept, at, beside() + column_of(j), place, state)

    @device
    def leave_number(j, given):
        i, present, place, kept, room, state = given
        at, across = (i & ahead) * columns + j, int32(column_of(j)) < room
        leave(i, j, int32(column_of(j)) < present, across, beside() + column_of(j), place, kept, at, state)

    load_columns, leave_columns = written_out(columns, load_number), written_out(columns, leave_number)

    @device
    def begin(i, kept, valid, room, state):
        place = of_row(min(int32(top() + row_of(i)), int32(valid - 1)), state)
        if reads:
            load_columns((i, place, kept, room, state))
        return place

    @device
    def row(i, place, kept, valid, room, state):
        following = begin(int32(i + 1), kept, valid, room, state) if ahead and i + 1 < rows else place
        present = room if int32(top() + row_of(i)) < valid else int32(0)
        leave_columns((i, present, place, kept, room, state))
        return following if ahead or i + 1 == rows else begin(int32(i + 1), kept, valid, room, state)

    @device
    def go_over(valid, wide, state):
        kept, room = cuda.local.array(size, real), int32(wide - beside())
        place = begin(int32(0), kept, valid, room, state)
        place = row(int32(0), place, kept, valid, room, state)
        if rows > 1:
            place = row(int32(1), place, kept, valid, room, state)
        if rows > 2:
            place = row(int32(2), place, kept, valid, room, state)
            place = row(int32(3), place, kept, valid, room, state)
        if rows > 4:
            place = row(int32(4), place, kept, valid, room, state)
            place = row(int32(5), place, kept, valid, room, state)
            place = row(int32(6), place, kept, valid, room, state)
            row(int32(7), place, kept, valid, room, state)

    return go_over
