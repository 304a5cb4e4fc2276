"""What a thread does with its part of a tile, as interpreted PTX: vectors where numbers lie so, one by one elsewhere.

The interpreter reports vectors at addresses that are no multiple of their size, and accesses outside an array.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuda_targets import CAPABILITY, DeviceMemory, Interpreter

from numba.cuda import dispatcher  # isort: skip
from mcelbo_kernels.cuda.epilogue import over_tile  # isort: skip
from mcelbo_kernels.cuda.seam import Kernel, cuda, device, float32, float64, int32, pointer, ptx_of  # isort: skip
from mcelbo_kernels.cuda.tile import NARROW, SMALL, SMALL_DOUBLE, Tile, places_to_finish  # isort: skip

TILES = {NARROW: float32, SMALL._replace(groups=4): float32, SMALL_DOUBLE: float64}


@cache
def doubled_and_multiplied(tile: Tile, real: Any) -> Kernel:
    """Return the kernel whose block leaves, of source (rows, columns), twice each number and 100 r + c times it."""
    finished, columns, place = tile.finished, tile.columns, places_to_finish(tile)

    @device
    def row(r, state):
        _acc, wide, offset = state
        return offset + r * wide, offset + r * wide

    @device
    def finish(i, j, inside, across, c, start, given, state):
        return given + given, given, state[0][i, j] * given

    go_over = over_tile(tile, real, row, finish, leaves=(True, False, True), reads=True)

    def kernel(source, twice, times, offset, valid, wide):
        acc = cuda.local.array((finished, columns), real)
        for i in range(finished):
            for j in range(columns):
                acc[i, j] = 100 * (place.top() + place.row(i)) + place.left() + place.column(j)
        go_over(valid, wide, source, (twice, twice, times), (acc, wide, offset))

    numbers = pointer(real)
    return Kernel(f"doubled {tile}", kernel, (numbers, numbers, numbers, int32, int32, int32), tile.threads, 1)


@pytest.mark.parametrize("tile", TILES, ids=str)
@given(data=st.data())
def test_numbers_of_the_matrix_are_read_and_left_wherever_they_lie(tile: Tile, data: st.DataObject) -> None:
    real = np.float32 if TILES[tile] == float32 else np.float64
    rows = data.draw(st.integers(1, tile.height), "rows")
    columns = data.draw(st.integers(1, tile.width) | st.integers(1, tile.width // 4).map(lambda n: 4 * n), "columns")
    offset = data.draw(st.integers(0, 5), "offset")
    source = 1 + np.arange(rows * columns, dtype=real).reshape(rows, columns) % 97
    held = np.concatenate([np.zeros(offset, real), source.ravel()])
    results = [DeviceMemory(np.empty(offset + rows * columns, real), written=False) for _ in range(2)]
    kernel = doubled_and_multiplied(tile, TILES[tile])
    Interpreter().launch(kernel, (1, 1), DeviceMemory(held), *results, offset, rows, columns)
    names = 100 * np.arange(rows)[:, None] + np.arange(columns)
    for result, expected in zip(results, (2 * source, names * source), strict=True):
        np.testing.assert_array_equal(result.array[offset:].reshape(rows, columns), expected)
        assert not result.written[:offset].any()


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_there_are_vectors(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=CAPABILITY))
    text = ptx_of(doubled_and_multiplied(tile, TILES[tile]), CAPABILITY)
    kind = "v4.f32" if TILES[tile] == float32 else "v2.f64"
    assert f"ld.global.{kind}" in text
    assert f"st.global.{kind}" in text
