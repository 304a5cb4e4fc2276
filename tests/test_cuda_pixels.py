"""The reduction of decoded samples by CUDA kernels, interpreted: against float64 NumPy and the CPU's."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcelbo_kernels import cpu
from mcelbo_kernels.decoded import DecodedErrors
from mcelbo_kernels.problem import CELLS, Array
from tests.cuda_targets import Interpreter
from tests.test_pixels import DTYPES, Case, cases, expected

from mcelbo_kernels.cuda.pixels import THREADS, cut_pixels, cut_samples, decoded_errors  # isort: skip

NEEDS = list(itertools.product([False, True], repeat=3))
WEIGHTS = ("none", "shared", "per datum")


class Counting(Interpreter):
    """An interpreter that counts its launches."""

    launches = 0

    def launch(self, *arguments: Any) -> None:
        self.launches += 1
        super().launch(*arguments)


def on_device(case: Case, *needs: bool, target: Interpreter | None = None) -> DecodedErrors:
    """Return the results of the kernels in their shapes, all of which must have been written."""
    target = target or Interpreter()
    batch, count, pixels = case.y.shape
    arrays = (None if array is None else target.upload(array) for array in case[1:])
    found = decoded_errors(case.cell, *arrays, *needs, target)
    weights = batch if case.weight is None else len(case.weight)
    shapes = (batch, count), (batch, count, pixels), (batch, pixels), (weights, pixels)
    results: list[Array | None] = []
    for memory, shape in zip(found, shapes, strict=True):
        assert memory is None or memory.written.all()
        results.append(None if memory is None else memory.array.reshape(shape))
    return DecodedErrors(*results)


def assert_near(found: DecodedErrors, case: Case, needs: tuple[bool, ...]) -> None:
    """Hold results to those of NumPy in float64.

    A term has at most six roundings by eps / 2 of its size: in the cell, two products, and one to store it. The sum of
    four terms in the same precision has three more, every other addition one of float64.
    """
    results, sizes = expected(case)
    eps = np.finfo(case.x.dtype).eps
    for name, needed in zip(DecodedErrors._fields, (True, *needs), strict=True):
        ours, exact = getattr(found, name), results[name]
        assert (ours is not None) == needed
        if needed:
            terms = 0 if name == "y" else case.y.size
            bound = (5 * eps + terms * np.finfo(np.float64).eps) * sizes[name]
            assert ours.dtype == (case.x.dtype if name == "y" else np.float64)
            np.testing.assert_array_equal(np.isnan(ours), np.isnan(exact))
            assert (abs(ours - exact) <= bound)[~np.isnan(exact)].all(), name


def case_of(cell: str, dtype: type, shape: tuple[int, int, int], weights: str) -> Case:
    """Return numbers of order one; weights have zeros, and NaN pixels there."""
    rng, (batch, count, pixels) = np.random.default_rng(3), shape
    y, x = rng.standard_normal(shape).astype(dtype), rng.standard_normal((batch, pixels)).astype(dtype)
    weight = None
    if weights != "none":
        weight = rng.uniform(0.1, 2, (1 if weights == "shared" else batch, pixels)).astype(dtype)
        weight[:, ::3] = 0
        x[:, ::3] = np.nan
    return Case(cell, y, x, weight, rng.standard_normal((batch, count)).astype(dtype))


@given(cases(), st.sampled_from(NEEDS))
def test_equals_numpy_in_float64(case: Case, needs: tuple[bool, ...]) -> None:
    assert_near(on_device(case, *needs), case, needs)


# one row in many parts, several rows of several, samples in parts with a last incomplete one, a single pixel
@pytest.mark.parametrize("shape", [(1, 1, 30011), (2, 3, 2050), (2, 700, 40), (1, 9000, 1)])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_sums_in_parts(shape: tuple[int, int, int], weights: str) -> None:
    batch, count, pixels = shape
    assert max(cut_pixels(batch * count, pixels).parts, cut_samples(*shape).parts) > 1
    case = case_of("squared_error", np.float32, shape, weights)
    assert_near(on_device(case, *[True] * 3), case, (True,) * 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_equals_the_cpu(cell: str, dtype: type) -> None:
    case = case_of(cell, dtype, (2, 20, 37), "per datum")
    theirs = cpu.decoded_errors(*case, need_y=True, need_x=True, need_weight=True)
    sizes = expected(case)[1]
    for name, ours, other in zip(theirs._fields, on_device(case, *[True] * 3), theirs, strict=True):
        assert ours is not None
        near = abs(ours - other) <= 8 * np.finfo(dtype).eps * sizes[name]
        assert (near | np.isnan(ours) & np.isnan(other)).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_terms_lose_nothing(dtype: type) -> None:
    y, x = np.zeros((1, 1, 200_003), dtype), np.full((1, 200_003), 0.1, dtype)
    found = on_device(Case("squared_error", y, x, None, None), False, False, False)
    # every term is the same square with one rounding, four of them have another three
    rounding = 2 * np.finfo(dtype).eps + 1000 * np.finfo(np.float64).eps
    np.testing.assert_allclose(found.errors, x.size * float(dtype(0.1)) ** 2, rtol=rounding)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_shows_in_its_own_sums_alone(cell: str) -> None:
    y, x = np.zeros((2, 3, 37), np.float32), np.ones((2, 37), np.float32)
    y[1, 2, 5] = np.nan
    found = on_device(Case(cell, y, x, None, None), *[True] * 3)
    nan = np.isnan(y)
    for ours, theirs in zip(found, (nan.any(2), nan, nan.any(1), nan.any(1)), strict=True):
        np.testing.assert_array_equal(np.isnan(ours), theirs)


@pytest.mark.parametrize("cell", CELLS)
def test_an_excluded_pixel_stays_excluded_under_a_nan_upstream(cell: str) -> None:
    y, x, weight = np.full((1, 1, 9), np.inf), np.full((1, 9), np.nan), np.zeros((1, 9))
    found = on_device(Case(cell, y, x, weight, np.full((1, 1), np.nan)), True, True, False)
    assert not any(np.any(result) for result in found[:3])


@pytest.mark.parametrize(
    ("shape", "needs", "launches"),
    [
        ((1, 100, 784), (False,) * 3, 1),
        ((1, 100, 784), (True,) * 3, 2),
        ((1, 2, 3000), (True, False, False), 2),
        ((1, 300, 3000), (True,) * 3, 5),
    ],
)
def test_launches_are_few(shape: tuple[int, int, int], needs: tuple[bool, ...], launches: int) -> None:
    target = Counting()
    on_device(case_of("squared_error", np.float32, shape, "none"), *needs, target=target)
    assert target.launches == launches


@given(st.integers(0, 200), st.integers(0, 10**6), st.integers(0, 10**7))
def test_cuts_cover_everything(batch: int, count: int, pixels: int) -> None:
    for cut, terms in ((cut_pixels(batch * count, pixels), pixels), (cut_samples(batch, count, pixels), count)):
        assert cut.parts * cut.piece >= terms
        assert cut.parts >= 1
        assert 1 <= cut.lanes <= THREADS
        assert cut.lanes & (cut.lanes - 1) == 0


@pytest.mark.parametrize("shape", [(1, 10_000, 784), (128, 1, 784), (1, 1, 1_000_000)])
def test_blocks_are_many(shape: tuple[int, int, int]) -> None:
    batch, count, pixels = shape
    lanes, parts, _ = cut_pixels(batch * count, pixels)
    assert batch * count * lanes // THREADS * parts >= 128
    lanes, parts, _ = cut_samples(*shape)
    assert batch * pixels // lanes * parts >= 128


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": np.zeros((3, 4))}, ValueError, r"weight has shape \(3, 4\): expected \(2, 4\) or \(1, 4\)"),
        ({"y": np.zeros((2, 3, 4), np.float32)}, TypeError, "y is float32 but x is float64"),
        ({"cell": "poisson"}, ValueError, "cell is 'poisson'"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    case = Case("squared_error", np.zeros((2, 3, 4)), np.zeros((2, 4)), None, None)._replace(**changes)
    with pytest.raises(error, match=message):
        on_device(case, False, False, False)
