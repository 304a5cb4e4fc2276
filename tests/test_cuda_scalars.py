"""Every activation and cell as CUDA computes it, from its PTX, against the same functions compiled for the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from mcelbo_kernels.numerics import activations, cells
from mcelbo_kernels.problem import ACTIVATIONS, CELLS
from tests.cuda_targets import Interpreter

from mcelbo_kernels.cuda.cell import activation, evaluation  # isort: skip
from mcelbo_kernels.cuda.seam import Kernel, cuda, float32, float64, int64, pointer  # isort: skip

Array = NDArray[Any]
PARAMETER = 0.3
DTYPES = [np.float32, np.float64]
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
THREADS = 256


def grid_of(dtype: Any) -> Array:
    """Return numbers of all sizes and both signs: kinks, where functions change over, subnormal and huge ones."""
    limits, rng = np.finfo(dtype), np.random.default_rng(3)
    kinks = np.array([0.0, 0.625, 1, 20, 30, 36, 87.33, 88, 88.37, 88.8, 103, 708.39, 709, 709.43, 709.9, 745], dtype)
    beside = [np.nextafter(kinks, dtype(side)) for side in (-np.inf, np.inf)]
    tiny = [limits.smallest_subnormal, limits.tiny / 3, limits.tiny, limits.eps]
    huge = [limits.max, limits.max / 2, limits.max / 8, np.sqrt(limits.max), 2.0**126, 2.0**127, np.inf]
    spread = np.exp2(rng.uniform(limits.minexp, limits.maxexp, 300))
    sizes = [rng.uniform(0, 1, 500), rng.uniform(0, 10, 700), rng.uniform(0, 100, 500), rng.uniform(80, 110, 200)]
    with np.errstate(over="ignore"):
        positive = np.concatenate([kinks, *beside, tiny, huge, spread, *sizes]).astype(dtype)
    return np.concatenate([positive, -positive, np.array([np.nan], dtype)])


def real_of(dtype: Any) -> Any:
    return float32 if dtype == np.float32 else float64


def on_device(name: str, function: Any, inputs: tuple[Array, ...], results: int) -> Array:
    """Return the results (results, N) of a device function (*inputs, parameter), from its PTX."""
    target, real, size = Interpreter(), real_of(inputs[0].dtype), inputs[0].size
    of_two = len(inputs) == 2

    def kernel(first, second, parameter, count, out):
        i = int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        if i < count:
            values = function(first[i], second[i], parameter) if of_two else function(first[i], parameter)
            for r in range(results):
                out[r * count + i] = values[r]

    numbers = pointer(real)
    wrapped = Kernel(f"test {name} {real}", kernel, (numbers, numbers, real, int64, numbers), THREADS, 1)
    out = target.empty(results * size, inputs[0].dtype)
    arrays = target.upload(inputs[0]), target.upload(inputs[-1])
    target.launch(wrapped, (-(-size // THREADS), 1), *arrays, PARAMETER, size, out)
    assert out.written.all()
    return out.array.reshape(results, size)


@cache
def activated(name: str, dtype: Any) -> tuple[Array, Array]:
    """Return (value, slope) on the grid, by CUDA and by the CPU."""
    a, function = grid_of(dtype), activations.BY_NAME[name]

    @njit(error_model="numpy")
    def over(a, parameter, out):
        for i in range(a.size):
            out[0, i], out[1, i] = function(a[i], parameter)

    theirs = np.empty((2, a.size), dtype)
    over(a, dtype(PARAMETER), theirs)
    return on_device(name, activation(name, real_of(dtype)), (a,), 2), theirs


def pairs_of(dtype: Any) -> tuple[Array, Array]:
    """Return outputs of the grid beside pixels of either kind, of which some are no numbers."""
    y = grid_of(dtype)
    pixels = np.array([0.0, 1.0, 0.3, -2.5, 1e4, np.inf, np.nan], dtype)
    return np.tile(y, pixels.size), np.repeat(pixels, y.size)


@cache
def evaluated(cell: str, dtype: Any) -> tuple[Array, Array]:
    """Return (t, dt/dy, dt/dx) of the pairs, by CUDA and by the CPU."""
    (y, x), function = pairs_of(dtype), cells.BY_NAME[cell].cell

    @njit(error_model="numpy")
    def over(y, x, out):
        for i in range(y.size):
            out[0, i], out[1, i], out[2, i] = function(y[i], x[i])

    theirs = np.empty((3, y.size), dtype)
    over(y, x, theirs)
    return on_device(cell, evaluation(cell, "identity", real_of(dtype)), (y, x), 3), theirs


def assert_near(ours: Array, theirs: Array, size: Array, flushed: Any = 0.0) -> None:
    """Hold numbers to four ulp of `size` and to what may be flushed; NaN, infinities and signs are to be the same.

    The two differ by a rounding where CUDA contracts a product and a sum. A device's approximate quotient of float32,
    which the interpreter rounds correctly, is off by two ulp at most.
    """
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    np.testing.assert_array_equal(np.where(np.isinf(ours), ours, 0), np.where(np.isinf(theirs), theirs, 0))
    number = ~np.isnan(theirs) & (flushed == 0)
    np.testing.assert_array_equal(np.signbit(ours[number]), np.signbit(theirs[number]))
    finite = np.isfinite(theirs)
    with np.errstate(over="ignore", invalid="ignore"):
        # the spacing of the largest number overflows
        near = np.abs(ours - theirs) <= 4 * np.spacing(size) + flushed
    assert near[finite].all()


@by_dtype
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, dtype: Any) -> None:
    a = grid_of(dtype)
    flushed = np.zeros_like(a)
    if dtype == np.float32 and name in ("sigmoid", "silu"):
        # 1 / (1 + e^-a) is 0 on CUDA where its denominator exceeds 2^126
        beyond = (a > -89) & (a < -87)
        flushed[beyond] = 2.0**-126 * (1 - a[beyond])
    for ours, theirs in zip(*activated(name, dtype), strict=True):
        assert_near(ours, theirs, np.abs(theirs), flushed)


@by_dtype
@pytest.mark.parametrize("cell", CELLS)
def test_cells(cell: str, dtype: Any) -> None:
    y, x = pairs_of(dtype)
    ours, theirs = evaluated(cell, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        # of Bernoulli's three terms the first two may cancel
        added = np.maximum(np.abs(theirs[0]), np.abs(x * y)) if cell == "bernoulli" else np.abs(theirs[0])
    for number, size in enumerate((added, np.abs(theirs[1]), np.abs(theirs[2]))):
        assert_near(ours[number], theirs[number], size)
