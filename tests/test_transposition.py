"""Blocks of a matrix, loaded, rounded, transposed and stored, against NumPy: on this machine's vectors and others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from mcelbo_kernels.cpu.shape import Shape
from mcelbo_kernels.cpu.transposition import load_block, rounded, store_block, transposed
from tests.test_tile import on_every_shape


@njit
def moved(shape, source, begin, stride, out, place, apart):
    store_block(out, place, apart, load_block(shape, source, begin, stride))


@njit
def turned(shape, source, begin, stride, out, place, apart):
    store_block(out, place, apart, transposed(load_block(shape, source, begin, stride)))


@njit
def multiplied(shape, source, begin, stride, factor, out):
    store_block(out, 0, out.shape[1], rounded(shape, load_block(shape, source, begin, stride), factor))


def matrix(shape: Shape, dtype: Any) -> Any:
    """A matrix in which a block has others on all its sides."""
    size = shape.lanes + 5
    return np.random.default_rng(size).standard_normal((size, size)).astype(dtype)


@on_every_shape
@pytest.mark.parametrize("turn", [False, True])
def test_a_block_comes_from_and_goes_to_its_place_alone(shape: Shape, turn: bool) -> None:
    # starts and strides that no vector divides
    source, lanes = matrix(shape, shape.real), shape.lanes
    out = np.full((lanes + 3, lanes + 4), 7, shape.real)
    kernel, width = turned if turn else moved, source.shape[1]
    kernel(shape, source, 2 * width + 3, width, out, out.shape[1] + 1, out.shape[1])
    expected = np.full_like(out, 7)
    block = source[2 : 2 + lanes, 3 : 3 + lanes]
    expected[1 : 1 + lanes, 1 : 1 + lanes] = block.T if turn else block
    np.testing.assert_array_equal(out, expected)


@on_every_shape
def test_rows_may_be_as_near_as_one_number(shape: Shape) -> None:
    source, out = matrix(shape, shape.real).reshape(-1), np.empty((shape.lanes, shape.lanes), shape.real)
    turned(shape, source, 1, 1, out, 0, shape.lanes)
    r, c = np.ogrid[: shape.lanes, : shape.lanes]
    np.testing.assert_array_equal(out, source[1 + r + c])


@on_every_shape
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_block_is_multiplied_in_its_own_precision_and_rounded_once(shape: Shape, dtype: Any) -> None:
    if np.dtype(dtype).itemsize < np.dtype(shape.real).itemsize:
        pytest.skip("sums are never of less precision than what becomes of them")
    source, out = matrix(shape, dtype), np.empty((shape.lanes, shape.lanes), shape.real)
    multiplied(shape, source, 1, source.shape[1], 1 / 3, out)
    product = source.reshape(-1)[1 : 1 + shape.lanes * source.shape[1]].reshape(shape.lanes, -1)[:, : shape.lanes]
    np.testing.assert_array_equal(out, (product * dtype(1 / 3)).astype(shape.real))
