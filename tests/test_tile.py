"""The register tile's operations against the NumPy that they stand for, on this machine's tile and on others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from mcelbo_kernels.cpu.tile import (
    Shape,
    add_lane_sums,
    host_shape,
    inner_add,
    load_row,
    load_vector,
    outer_add,
    repeat_row,
    store_tile,
    zero_tile,
)
from mcelbo_kernels.numerics.lanes import sum_of_lanes

SHAPES = [
    host_shape("float32"),
    host_shape("float64"),
    Shape("float32", 8, 2, 4),
    Shape("float64", 12, 2, 8),
    Shape("float32", 2, 3, 8),
]


@njit
def outer_product(shape, start, column, rows, out):
    tile = repeat_row(shape, load_row(shape, start, 0))
    for k in range(rows.shape[0]):
        tile = outer_add(tile, column, k * column.shape[1], load_row(shape, rows, k * rows.shape[1]))
    store_tile(out, 0, tile)


@njit
def inner_product(shape, left, right, steps, out):
    tile = zero_tile(shape)
    for k in range(0, left.shape[1], steps):
        tile = inner_add(tile, left, k, left.shape[1], right, k, right.shape[1])
    add_lane_sums(out, 0, out.shape[1], tile)


@njit
def lanes_summed(shape, x):
    return sum_of_lanes(load_vector(shape, x, 1))


def numbers(shape: Shape, *size: int) -> Any:
    return np.random.default_rng(sum(size)).standard_normal(size).astype(shape.real)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outer_add(shape: Shape) -> None:
    start, column, rows = numbers(shape, shape.width), numbers(shape, 5, shape.rows), numbers(shape, 5, shape.width)
    out = np.empty((shape.rows, shape.width), shape.real)
    outer_product(shape, start, column, rows, out)
    expected = start + column.T.astype(float) @ rows
    np.testing.assert_allclose(out, expected, atol=30 * np.finfo(shape.real).eps)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inner_add(shape: Shape) -> None:
    length = 3 * shape.lanes
    left, right = numbers(shape, shape.rows, length), numbers(shape, shape.columns, length)
    out = numbers(shape, shape.rows, shape.columns + 1)
    before = out.copy()
    inner_product(shape, left, right, shape.lanes, out)
    before[:, :-1] += left.astype(float) @ right.T
    np.testing.assert_allclose(out, before, atol=100 * np.finfo(shape.real).eps)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sum_of_lanes_from_an_unaligned_address(shape: Shape) -> None:
    x = numbers(shape, shape.lanes + 2)
    assert lanes_summed(shape, x) == pytest.approx(x[1:-1].sum(dtype=float), abs=1e-5)


def test_the_host_s_tile_leaves_registers_for_operands() -> None:
    for real, size in (("float32", 4), ("float64", 8)):
        shape = host_shape(real)
        registers = 32 if shape.lanes * size == 64 else 16
        assert shape.rows * shape.columns + shape.columns + 1 <= max(registers, 32 if shape.lanes * size == 16 else 0)
