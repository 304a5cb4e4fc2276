"""The reduction of decoded samples against float64 NumPy."""

from __future__ import annotations

import doctest
import re
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import float32, float64

from mcelbo_kernels.cpu import decoded_errors, pixels
from mcelbo_kernels.cpu.cell import Cell, CellType
from mcelbo_kernels.numerics import cells
from mcelbo_kernels.problem import CELLS, Array
from tests.strategies import LAYOUTS, laid_out

DTYPES = (np.float32, np.float64)


class Case(NamedTuple):
    cell: str
    y: Array  # (B, c, m)
    x: Array  # (B, m)
    weight: Array | None  # (B or 1, m)
    upstream: Array | None  # (B, c)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw sizes on both sides of a vector's, and numbers of order one; weights have zeros, and NaN pixels there."""
    batch, count = draw(st.integers(0, 4)), draw(st.integers(0, 5))
    m = draw(st.integers(0, 9) | st.sampled_from([31, 33, 127, 784, 1029]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUTS))
    y, x = rng.standard_normal((batch, count, m)).astype(dtype), rng.standard_normal((batch, m)).astype(dtype)
    weight = None
    kind = draw(st.sampled_from(["none", "shared", "per datum"]))
    if kind != "none":
        weight = rng.uniform(0.1, 2, (1 if kind == "shared" else batch, m)).astype(dtype)
        weight[rng.random(weight.shape) < 0.2] = 0
        if draw(st.booleans()):
            x[np.broadcast_to(weight == 0, x.shape)] = np.nan
    upstream = rng.standard_normal((batch, count)).astype(dtype) if draw(st.booleans()) else None
    arrays = (None if array is None else laid_out(array, layout) for array in (y, x, weight, upstream))
    return Case(draw(st.sampled_from(CELLS)), *arrays)


def expected(case: Case) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the results in float64, and the magnitudes of what they sum."""
    y, x = case.y.astype(np.float64), case.x.astype(np.float64)[:, None]
    w = (np.ones((1, y.shape[2])) if case.weight is None else case.weight.astype(np.float64))[:, None]
    u = (np.ones(y.shape[:2]) if case.upstream is None else case.upstream.astype(np.float64))[:, :, None]
    t, dy, dx = cells.BY_NAME[case.cell].arrays(y, x, np)
    t_size, slope_size = abs(t) + abs(dy * y) + abs(dx * x), abs(x) + abs(y) + abs(dy)
    shared = case.weight is not None and len(case.weight) == 1

    def of_weight(terms: Array) -> Array:
        return terms.sum((0, 1))[None] if shared else terms.sum(1)

    def weighted(terms: Array) -> Array:
        return np.where(w == 0, 0, w * terms)

    results = {
        "errors": weighted(t).sum(2),
        "y": weighted(u * dy),
        "x": weighted(u * dx).sum(1),
        "weight": of_weight(u * t),
    }
    sizes = {
        "errors": weighted(t_size).sum(2),
        "y": weighted(abs(u) * slope_size),
        "x": weighted(abs(u) * slope_size).sum(1),
        "weight": of_weight(abs(u) * t_size),
    }
    return results, sizes


@given(cases())
def test_equals_numpy_in_float64(case: Case) -> None:
    found = decoded_errors(*case, need_y=True, need_x=True, need_weight=case.weight is not None)
    results, sizes = expected(case)
    eps = np.finfo(case.x.dtype).eps
    for name, result in results.items():
        ours = getattr(found, name)
        if ours is None:
            assert name == "weight"
            assert case.weight is None
            continue
        # A term has at most six roundings by eps / 2 of its size: in the cell, two products, and one to store it.
        # An addition in float64 has one of its own.
        terms = 0 if name == "y" else case.y.size
        bound = (3 * eps + terms * np.finfo(np.float64).eps) * sizes[name]
        assert ours.dtype == (case.x.dtype if name == "y" else np.float64)
        assert np.array_equal(np.isnan(ours), np.isnan(result))
        assert (abs(ours - result) <= bound)[~np.isnan(result)].all()


@given(cases())
def test_gradients_that_nobody_asked_for_are_absent(case: Case) -> None:
    alone = decoded_errors(*case)
    assert alone[1:] == (None, None, None)
    together = decoded_errors(*case, need_y=True, need_x=True, need_weight=True)
    # the same terms, of either sign: only the order of the sum may differ between two kernels
    rounding = case.x.shape[1] * np.finfo(np.float64).eps
    assert (abs(alone.errors - together.errors) <= rounding * expected(case)[1]["errors"]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_million_pixels_lose_nothing(dtype: type) -> None:
    m = 1_000_003
    y, x = np.zeros((1, 2, m), dtype), np.full((1, m), 0.1, dtype)
    found = decoded_errors("squared_error", y, x, need_x=True)
    # Every term is the same square with one rounding. The float64 sum adds 2^20 terms in at least 4 partial sums of one
    # sign, whose relative error is at most the terms of each times epsilon / 2.
    rounding = m / 4 * np.finfo(np.float64).eps / 2 + np.finfo(dtype).eps / 2
    np.testing.assert_allclose(found.errors, m * float(dtype(0.1)) ** 2, rtol=rounding)


def test_many_samples_lose_nothing_in_the_sums_over_them() -> None:
    c = 1_000_003
    y, x = np.zeros((1, c, 1), np.float32), np.full((1, 1), 0.1, np.float32)
    found = decoded_errors("squared_error", y, x, need_x=True, need_weight=True)
    tenth = float(np.float32(0.1))
    # One rounding of a float32 term, the same in all, and a million of float64.
    rounding = np.finfo(np.float32).eps + c * np.finfo(np.float64).eps / 2
    np.testing.assert_allclose(found.x, 2 * c * tenth, rtol=rounding)
    np.testing.assert_allclose(found.weight, c * tenth**2, rtol=2 * rounding)


@pytest.mark.parametrize(("cell", "value"), [*((cell, np.nan) for cell in CELLS), ("squared_error", np.inf)])
@pytest.mark.parametrize("pixel", [0, 5, 36])
def test_nan_and_infinity_show(cell: str, value: float, pixel: int) -> None:
    y, x = np.zeros((2, 3, 37), np.float32), np.ones((2, 37), np.float32)
    y[1, 2, pixel] = value
    found = decoded_errors(cell, y, x, need_y=True, need_x=True, need_weight=True)
    assert not np.isfinite(found.errors[1, 2])
    assert not np.isfinite(found.y[1, 2, pixel])
    assert not np.isfinite(found.x[1, pixel])
    assert not np.isfinite(found.weight[1, pixel])
    found.errors[1, 2] = 0
    assert np.isfinite(found.errors).all()


@pytest.mark.parametrize("cell", CELLS)
def test_an_excluded_pixel_stays_excluded_under_a_nan_upstream(cell: str) -> None:
    y, x, weight = np.ones((1, 1, 9)), np.zeros((1, 9)), np.zeros((1, 9))
    found = decoded_errors(cell, y, x, weight, np.full((1, 1), np.nan), need_y=True, need_x=True)
    assert (found.y == 0).all()
    assert (found.x == 0).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": np.zeros((2, 3))}, ValueError, r"y has shape \(2, 3\) and x \(2, 4\)"),
        ({"x": np.zeros((2, 5))}, ValueError, r"and x \(2, 5\)"),
        ({"weight": np.zeros((3, 4))}, ValueError, r"weight has shape \(3, 4\): expected \(2, 4\) or \(1, 4\)"),
        ({"upstream": np.zeros((2, 2))}, ValueError, r"upstream has shape \(2, 2\): expected \(2, 3\)"),
        ({"y": np.zeros((2, 3, 4), np.float32)}, TypeError, "y is float32 but x is float64"),
        ({"weight": np.zeros((1, 4), np.int64)}, TypeError, "weight is int64: expected float32 or float64"),
        ({"cell": "poisson"}, ValueError, "cell is 'poisson': expected one of 'squared_error', 'bernoulli'"),
    ],
)
def test_bad_input_is_named(change: dict[str, Array], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        decoded_errors(**({"cell": "squared_error", "y": np.zeros((2, 3, 4)), "x": np.zeros((2, 4))} | change))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("real", [float32, float64], ids=str)
def test_the_sum_over_pixels_runs_in_vectors(cell: str, real: Any) -> None:
    row = real[::1]
    # compiled anew, because numba shows no code of what it found in its cache
    fresh = numba.jit(**pixels._row.targetoptions)(pixels._row.py_func)
    fresh.compile((CellType(Cell("identity", (), cell, True, False)), row, row, row, real, row))
    (code,) = fresh.inspect_llvm().values()
    assert re.search(r"= fadd .*<\d+ x double>", code)
    assert re.search(rf"store <\d+ x {'float' if real is float32 else 'double'}>", code)


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(pixels).failed == 0
