"""The register tile's operations against the NumPy that they stand for, on this machine's tile and on others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from mcelbo_kernels._compile import inline
from mcelbo_kernels.cpu.shape import Shape, host_shape
from mcelbo_kernels.cpu.tile import (
    accumulate,
    columns_add,
    columns_apart,
    filled_from,
    load_row,
    load_vector,
    map_tile,
    outer_add,
    repeat_row,
    row_sums,
    rows_add,
    rows_apart,
    rows_up_to,
    store_tile,
    zero_tile,
)
from mcelbo_kernels.numerics.lanes import sum_of_lanes

SHAPES = (
    host_shape("float32"),
    host_shape("float64"),
    Shape("float32", 8, 2, 4),
    Shape("float64", 8, 2, 2),
    Shape("float64", 12, 2, 8),
    Shape("float32", 2, 3, 8),
)
on_every_shape = pytest.mark.parametrize("shape", dict.fromkeys(SHAPES), ids=str)  # of which one may be this machine's


@njit
def one_product(shape, start, left, right, out):
    apart, tile = rows_apart(shape, left.shape[1]), repeat_row(shape, load_row(shape, start, 0))
    for k in range(right.shape[0]):
        tile = outer_add(shape, tile, left, k, apart, right, k * right.shape[1])
    store_tile(out, 0, tile)


@njit
def product_of_columns(shape, left, right, out):
    store_tile(out, 0, columns_add(shape, zero_tile(shape), left, 0, rows_apart(shape, left.shape[1]), right, 0))


@njit
def product_of_rows(shape, left, first, last, stride, right, out):
    apart = columns_apart(shape, first, last, stride)
    store_tile(out, 0, rows_add(shape, zero_tile(shape), left, 0, apart, right, 0))


@njit
def product_up_to(shape, last, left, right, out):
    apart = rows_up_to(shape, last, left.shape[1])
    store_tile(out, 0, outer_add(shape, zero_tile(shape), left, 0, apart, right, 0))


@inline
def scaled(x, r, c, factor):
    return x * (factor + r + 10 * c)


@njit
def mapped(shape, x, factor, out, sums):
    tile = repeat_row(shape, load_row(shape, x, 0))
    store_tile(out, 0, map_tile(scaled, tile, (factor,)))
    accumulate(sums, 0, row_sums(scaled, tile, (factor,)))


@njit
def filled(shape, x, column, out):
    store_tile(out, 0, filled_from(repeat_row(shape, load_row(shape, x, 0)), column, -2.0))


@njit
def lanes_summed(shape, x):
    return sum_of_lanes(load_vector(shape, x, 1))


def numbers(shape: Shape, *size: int) -> Any:
    return np.random.default_rng(sum(size)).standard_normal(size).astype(shape.real)


@on_every_shape
def test_outer_add(shape: Shape) -> None:
    start, left, right = numbers(shape, shape.width), numbers(shape, shape.rows, 5), numbers(shape, 5, shape.width)
    out = np.empty((shape.rows, shape.width), shape.real)
    one_product(shape, start, left, right, out)
    np.testing.assert_allclose(out, start + left.astype(float) @ right, atol=30 * np.finfo(shape.real).eps)


@on_every_shape
def test_columns_add(shape: Shape) -> None:
    left, right = numbers(shape, shape.rows, shape.steps + 3), numbers(shape, shape.steps + 1, shape.width)
    out = np.empty((shape.rows, shape.width), shape.real)
    product_of_columns(shape, left, right, out)
    expected = left[:, : shape.steps].astype(float) @ right[: shape.steps]
    np.testing.assert_allclose(out, expected, atol=60 * np.finfo(shape.real).eps)


@on_every_shape
def test_rows_add_of_columns_in_panels(shape: Shape) -> None:
    steps = shape.steps
    panels = numbers(shape, 3, steps, shape.width)
    columns = panels.transpose(1, 0, 2).reshape(steps, -1)
    right, out = numbers(shape, steps, shape.width), np.empty((shape.rows, shape.width), shape.real)
    last = 2 * shape.width + 1
    for first in (0, shape.width - 1, last - 1):
        product_of_rows(shape, panels.reshape(-1), first, last, steps * shape.width, right, out)
        chosen = columns[:, np.minimum(first + np.arange(shape.rows), last)]
        np.testing.assert_allclose(out, chosen.T.astype(float) @ right, atol=60 * np.finfo(shape.real).eps)


@on_every_shape
def test_rows_up_to_the_last(shape: Shape) -> None:
    left, right = numbers(shape, shape.rows + 3, 4), numbers(shape, shape.width)
    out = np.empty((shape.rows, shape.width), shape.real)
    for last in (0, 1, shape.rows - 1, shape.rows + 2):
        product_up_to(shape, last, left, right, out)
        chosen = left[np.minimum(np.arange(shape.rows), last), 0]
        np.testing.assert_array_equal(out, chosen[:, None] * right)


@on_every_shape
def test_functions_of_a_tile(shape: Shape) -> None:
    x, factor = numbers(shape, shape.width), getattr(np, shape.real)(2)
    out, sums = np.empty((shape.rows, shape.width), shape.real), np.ones((shape.rows, shape.lanes), shape.real)
    mapped(shape, x, factor, out, sums)
    vectors = 2 + np.arange(shape.rows)[:, None] + 10 * np.arange(shape.columns)
    expected = x * np.repeat(vectors, shape.lanes, axis=1)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    by_vector = expected.reshape(shape.rows, shape.columns, shape.lanes).sum(1)
    np.testing.assert_allclose(sums, 1 + by_vector, rtol=1e-5, atol=1e-5)


@on_every_shape
def test_filled_from_leaves_no_trace_of_what_was_there(shape: Shape) -> None:
    x, out = numbers(shape, shape.width), np.empty((shape.rows, shape.width), shape.real)
    for column in range(shape.width + 1):
        x[column:] = np.nan
        filled(shape, x, column, out)
        expected = np.where(np.arange(shape.width) < column, x, -2)
        np.testing.assert_array_equal(out, np.tile(expected, (shape.rows, 1)))
        x[column:] = numbers(shape, shape.width)[column:]


@on_every_shape
def test_sum_of_lanes_from_an_unaligned_address(shape: Shape) -> None:
    x = numbers(shape, shape.lanes + 2)
    assert lanes_summed(shape, x) == pytest.approx(x[1:-1].sum(dtype=float), abs=1e-5)


def test_the_host_s_tile_leaves_registers_for_operands() -> None:
    for real, size in (("float32", 4), ("float64", 8)):
        shape = host_shape(real)
        registers = 32 if shape.lanes * size == 64 else 16
        assert shape.rows * shape.columns + shape.columns + 1 <= max(registers, 32 if shape.lanes * size == 16 else 0)
