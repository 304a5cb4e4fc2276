"""What a thread does with its part of a tile, as interpreted PTX: vectors where numbers lie so, one by one elsewhere.

The interpreter reports vectors at addresses that are no multiple of their size, and accesses outside an array.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuda_targets import DeviceMemory, Interpreter, text_of

from mcelbo_kernels.cuda.epilogue import over_tile  # isort: skip
from mcelbo_kernels.cuda.seam import Kernel, cuda, device, float32, int32, pointer  # isort: skip
from mcelbo_kernels.cuda.tile import NARROW, SMALL, SMALL_DOUBLE, Tile, places_to_finish  # isort: skip
from tests.cuda_kernels import REAL_OF  # isort: skip

TILES = (NARROW, SMALL._replace(groups=4), SMALL_DOUBLE)


@cache
def finishing(tile: Tile, real: Any, reads: bool) -> Kernel:
    """Return the kernel whose block leaves, of source (rows, columns), 100 r + c times each number, and twice it.

    Without a source it leaves 100 r + c alone. Each thread tallies how many numbers were inside and across.
    """
    finished, columns, place, zero = tile.finished, tile.columns, places_to_finish(tile), real(0)

    @device
    def row(r, state):
        _acc, _tally, wide, offset = state
        return offset + r * wide, offset + r * wide

    @device
    def finish(i, j, inside, across, c, start, given, state):
        tally = state[1]
        tally[0] += real(1) if inside else zero
        tally[1] += real(1) if across else zero
        return state[0][i, j] * given if reads else state[0][i, j], zero, given + given

    go_over = over_tile(tile, real, row, finish, leaves=(True, False, reads), reads=reads)

    def kernel(source, times, unused, twice, tallies, offset, valid, wide):
        acc, tally = cuda.local.array((finished, columns), real), cuda.local.array(2, real)
        tally[0], tally[1] = zero, zero
        for i in range(finished):
            for j in range(columns):
                acc[i, j] = 100 * (place.top() + place.row(i)) + place.left() + place.column(j)
        go_over(valid, wide, source, (times, unused, twice), (acc, tally, wide, offset))
        tallies[2 * cuda.threadIdx.x], tallies[2 * cuda.threadIdx.x + 1] = tally[0], tally[1]

    numbers = pointer(real)
    return Kernel(f"finishing {tile}", kernel, (*[numbers] * 5, int32, int32, int32), tile.threads, 1)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("tile", TILES, ids=str)
@given(data=st.data())
def test_numbers_of_the_matrix_are_read_and_left_wherever_they_lie(
    tile: Tile, reads: bool, data: st.DataObject
) -> None:
    real = np.float32 if REAL_OF[tile] == float32 else np.float64
    rows = data.draw(st.integers(1, tile.height), "rows")
    columns = data.draw(st.integers(1, tile.width) | st.integers(1, tile.width // 4).map(lambda n: 4 * n), "columns")
    offset = data.draw(st.integers(0, 5), "offset")
    begins = [data.draw(st.integers(0, 4), "begin") for _ in range(3)]
    source = 1 + np.arange(rows * columns, dtype=real).reshape(rows, columns) % 97

    def results(begin: int) -> DeviceMemory:
        return DeviceMemory(np.empty(begin + offset + rows * columns, real), written=False, begin=begin)

    held = DeviceMemory(np.concatenate([np.zeros(begins[0] + offset, real), source.ravel()]), begin=begins[0])
    times, twice = results(begins[1]), results(begins[2])
    tallies = DeviceMemory(np.empty((tile.threads, 2), real), written=False)
    given = held if reads else None, times, None, twice if reads else None, tallies, offset, rows, columns
    Interpreter().launch(finishing(tile, REAL_OF[tile], reads), (1, 1), *given)
    names = 100 * np.arange(rows)[:, None] + np.arange(columns)
    expected = [(times, names * source), (twice, 2 * source)] if reads else [(times, names)]
    for result, numbers in expected:
        first = result.begin + offset
        np.testing.assert_array_equal(result.array[first:].reshape(rows, columns), numbers)
        assert not result.written[:first].any()
    assert tallies.array.sum(0).tolist() == [rows * columns, tile.height * columns]


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_there_are_vectors(tile: Tile) -> None:
    text = text_of(finishing(tile, REAL_OF[tile], True))
    kind = "v4.f32" if REAL_OF[tile] == float32 else "v2.f64"
    assert f"ld.global.{kind}" in text
    assert f"st.global.{kind}" in text
