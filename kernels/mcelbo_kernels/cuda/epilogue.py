"""What a thread does with its part of a tile when the sums are complete, written out number by number.

Its neighbouring columns, a run, are loaded and stored 16 bytes at once where they lie so: four threads that store four
bytes each, 16 apart, fill a quarter of what the memory moves for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mcelbo_kernels.cuda.seam import VECTOR, cuda, device, int32, is_aligned, load_vector, store_vector
from mcelbo_kernels.cuda.tile import Tile, places_to_finish


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


def load_run(tile: Tile, real: Any) -> Any:
    """Return the device function (source, at, room, kept, to): kept[to + e] = source[at + e], zero from e = room on."""
    run, each, zero = tile.run, VECTOR * 8 // real.bitwidth, real(0)

    @device
    def load(source, at, room, kept, to):
        if run <= room and is_aligned(source, at):
            for first in range(0, run, each):
                numbers = load_vector(source, at + first)
                for e in range(each):
                    kept[to + first + e] = numbers[e]
        else:
            for e in range(run):
                kept[to + e] = source[at + e] if int32(e) < room else zero

    return load


def store_run(tile: Tile, real: Any) -> Any:
    """Return the device function (kept, of, target, at, room): target[at + e] = kept[of + e] for e < room."""
    run, each = tile.run, VECTOR * 8 // real.bitwidth
    four = each == 4

    @device
    def store(kept, of, target, at, room):
        if run <= room and is_aligned(target, at):
            for first in range(0, run, each):
                e = of + first
                if four:
                    store_vector(target, at + first, (kept[e], kept[e + 1], kept[e + 2], kept[e + 3]))
                else:
                    store_vector(target, at + first, (kept[e], kept[e + 1]))
        else:
            for e in range(run):
                if int32(e) < room:
                    target[at + e] = kept[of + e]

    return store


def row_of_loads(tile: Tile, real: Any, ahead: int) -> Any:
    """Return the device function ((i, place, kept, room, source)) that loads the i-th row, which begins at place[1].

    With `ahead` rows lie in either half of `kept` by turns. `room` columns from the thread's first are there.
    """
    columns, run, load = tile.columns, tile.run, load_run(tile, real)
    _, beside, _, column_of = places_to_finish(tile)

    @device
    def load_one(q, state):
        i, place, kept, room, source = state
        column = int32(column_of(q * run))
        load(source, place[1] + beside() + column, int32(room - column), kept, (i & ahead) * columns + q * run)

    return written_out(columns // run, load_one)


def row_of_results(tile: Tile, real: Any, finish: Any, leaves: Sequence[bool], reads: bool, ahead: int) -> Any:
    """Return the device function ((i, present, place, kept, room, results, state)) that finishes and stores a row.

    The matrix has `present` of the thread's columns from its first one on, none of a row outside; see `over_tile`.
    """
    columns, run, zero, store = tile.columns, tile.run, real(0), store_run(tile, real)
    stored, count, size = tuple(leaves), len(leaves), len(leaves) * tile.run
    _, beside, _, column_of = places_to_finish(tile)

    @device
    def finish_number(e, given):
        q, i, present, place, kept, room, left, state = given
        column = int32(column_of(q * run + e))
        number = kept[(i & ahead) * columns + q * run + e] if reads else zero
        numbers = finish(i, q * run + e, column < present, column < room, beside() + column, place, number, state)
        for k in range(count):
            left[k * run + e] = numbers[k]

    finish_run = written_out(run, finish_number)

    @device
    def leave_result(k, given):
        left, results, at, inside = given
        if stored[k]:
            store(left, int32(k * run), results[k], at, inside)

    leave_results = written_out(count, leave_result)

    @device
    def leave_run(q, given):
        i, present, place, kept, room, results, state = given
        left = cuda.local.array(size, real)
        finish_run((q, i, present, place, kept, room, left, state))
        column = int32(column_of(q * run))
        leave_results((left, results, place[0] + beside() + column, int32(present - column)))

    return written_out(columns // run, leave_run)


def over_tile(
    tile: Tile, real: Any, of_row: Any, finish: Any, *, leaves: Sequence[bool] = (True,), reads: bool = False
) -> Any:
    """Return the device function (valid, wide, source, results, state) that goes over what a thread finishes of a tile.

    Parameters
    ----------
    tile, real
        The tile and its numbers' precision.
    of_row : (r, state) -> tuple of int64
        Where the tile's row r begins in the results, where in the source, and what else `finish` needs to know of it;
        called once a row. In place of rows below the last valid one that is taken again.
    finish : (i, j, inside, across, c, place, given, state) -> tuple of numbers
        What a number turns into, for each result: it is acc[i, j] of the thread, of column c in a row that begins at
        `place`; `inside` tells whether the matrix has it, and `across` whether it has at least the column; `given` is
        the source's number, zero behind the last column, and that of the last valid row below it.
    leaves : sequence of bool
        Which of the results are stored.
    reads : bool
        Whether there is a source. A thread waits for the loads of a row at once; where it finishes few rows, so that it
        has registers for it, it loads the next one meanwhile.
    """
    top, beside, row_of, _ = places_to_finish(tile)
    rows, ahead = tile.finished, int(tile.groups > 1 and reads)
    size = (1 + ahead) * tile.columns if reads else 1
    load_row, leave_row = row_of_loads(tile, real, ahead), row_of_results(tile, real, finish, leaves, reads, ahead)

    @device
    def begin(i, kept, valid, room, source, state):
        place = of_row(min(int32(top() + row_of(i)), int32(valid - 1)), state)
        if reads:
            load_row((i, place, kept, room, source))
        return place

    @device
    def row(i, place, kept, valid, room, source, results, state):
        following = begin(int32(i + 1), kept, valid, room, source, state) if ahead and i + 1 < rows else place
        present = room if int32(top() + row_of(i)) < valid else int32(0)
        leave_row((i, present, place, kept, room, results, state))
        return following if ahead or i + 1 == rows else begin(int32(i + 1), kept, valid, room, source, state)

    @device
    def go_over(valid, wide, source, results, state):
        kept, room = cuda.local.array(size, real), int32(wide - beside())
        place = begin(int32(0), kept, valid, room, source, state)
        place = row(int32(0), place, kept, valid, room, source, results, state)
        if rows > 1:
            place = row(int32(1), place, kept, valid, room, source, results, state)
        if rows > 2:
            place = row(int32(2), place, kept, valid, room, source, results, state)
            place = row(int32(3), place, kept, valid, room, source, results, state)
        if rows > 4:
            place = row(int32(4), place, kept, valid, room, source, results, state)
            place = row(int32(5), place, kept, valid, room, source, results, state)
            place = row(int32(6), place, kept, valid, room, source, results, state)
            row(int32(7), place, kept, valid, room, source, results, state)

    return go_over
