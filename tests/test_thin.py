"""The pass over few latents: against the reference and the ordinary pass, and where it is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcelbo_kernels import reference
from mcelbo_kernels.cpu import layout, memory, schedule
from mcelbo_kernels.cpu.layers import COLUMNS_OF_A_SUM, PANELS_OF_A_SUM
from mcelbo_kernels.cpu.layout import is_thin, kind_of, lay_out
from mcelbo_kernels.cpu.shape import Shape, host_shape
from mcelbo_kernels.problem import Draw, Gradients, Layer, Need, Problem
from tests.bounds import magnitudes
from tests.test_grid import (
    assert_an_infinite_latent_is_saturation,
    assert_gradients,
    assert_same,
    random_problem,
    slack,
)
from tests.torch_twin import named

Array = Any
PASSED = Need(False, False, True, True, ((True, True),))
NOTHING = Need(False, False, False, False, ((False, False),))
# Of every number of latents a kernel is compiled: all share the activation, and weights, which can be 1.
WIDE = Shape("float32", 12, 2, 16)
FEW = range(1, WIDE.lanes // layout.LANES_OF_A_THIN_LATENT + 1)


@pytest.fixture(params=FEW)
def latent(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(autouse=True)
def _tile_with_room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "host_shape", lambda real: WIDE if real == "float32" else host_shape(real))


def weighted_problem(
    batch: int, latent: int, pixels: int, n: int, shared: bool = True, real: Any = np.float32
) -> Problem:
    """A problem whose pixel weights are ones, zeros and others."""
    weight = np.random.default_rng(pixels).choice([0.0, 0.5, 1.0, 2.0], (1 if shared else batch, pixels)).astype(real)
    return random_problem(batch, latent, pixels, n, real=real, weight=weight)


def random_upstream(problem: Problem) -> Array:
    """Of either sign, with zeros."""
    rng = np.random.default_rng(1)
    size = (len(problem.x), problem.draw.num_samples)
    return (rng.standard_normal(size) * (rng.random(size) < 0.8)).astype(problem.x.dtype)


def chosen(problem: Problem, need: Need = PASSED) -> bool:
    return is_thin(kind_of(problem, need, schedule.host_shape(problem.x.dtype.name)))


def chunks_and_tasks(problem: Problem) -> tuple[int, int]:
    """How many chunks there are, and how many tasks each has."""
    found = lay_out(kind_of(problem, PASSED, schedule.host_shape(problem.x.dtype.name)))
    return -(-len(problem.x) * problem.draw.num_samples // found.capacity), found.tasks


def assert_right(problem: Problem, upstream: Array) -> None:
    """Errors, moments and gradients within the roundings of their terms."""
    assert chosen(problem)
    exact, size = reference.errors(problem), magnitudes(problem)["errors"]
    assert (np.abs(schedule.errors(problem) - exact) <= slack(problem) * size).all()
    # assert_gradients looks at whatever it is given
    assert_gradients(schedule.gradients(problem, upstream, PASSED), problem, upstream)
    moments, gradients = schedule.value_and_gradients(problem, PASSED)
    assert_gradients(gradients, problem, np.full(exact.shape, 1 / problem.draw.num_samples))
    assert (np.abs(moments.mean - exact.mean(1)) <= slack(problem) * size.mean(1)).all()
    deviation = np.abs(exact - exact.mean(1, keepdims=True))
    allowed = 2 * slack(problem) * (deviation * size).sum(1) + (slack(problem) * size).sum(1) ** 2
    assert (np.abs(moments.squares - (deviation**2).sum(1)) <= allowed + 1e-12).all()


def assert_near(some: Gradients, others: Gradients, problem: Problem, upstream: Array) -> None:
    """Each is off by roundings of its own."""
    size = magnitudes(problem, upstream)
    for name, array in named(some).items():
        assert (np.abs(array - named(others)[name]) <= 2 * slack(problem) * size[name]).all(), name


# pixels on both sides of a panel's 32 and of its half, samples on both sides of a tile, a task and a chunk
@given(
    latent=st.sampled_from(FEW),
    batch=st.integers(1, 4),
    pixels=st.sampled_from([1, 15, 16, 17, 31, 32, 33, 70]),
    n=st.integers(1, 9) | st.sampled_from([67, 300, 1500]),
    shared=st.booleans(),
)
def test_against_the_reference(latent: int, batch: int, pixels: int, n: int, shared: bool) -> None:
    problem = weighted_problem(batch, latent, pixels, n, shared)
    assert_right(problem, random_upstream(problem))


def test_without_weights_and_in_double_precision() -> None:
    for problem in (random_problem(3, 1, 41, 67), weighted_problem(3, 1, 41, 67, real=np.float64)):
        assert_right(problem, random_upstream(problem))


def test_more_panels_than_are_summed_in_one_go() -> None:
    problem = weighted_problem(2, 1, PANELS_OF_A_SUM * WIDE.width + 45, 5)
    assert_right(problem, random_upstream(problem))


@pytest.mark.parametrize("x", [False, True])
def test_beside_one_large_term_only_those_of_its_own_sum_are_lost(x: bool) -> None:
    """So few pixels are added up in single precision, by either pass, that little can be lost of a great many."""
    pixels = 16_384
    problem = weighted_problem(1, 1, pixels, 1)
    (layer,) = problem.layers
    layer.weight[:], layer.bias[:], problem.mu[:], problem.logvar[:] = 1, 0, 0, -np.inf
    assert problem.weight is not None
    problem.weight[:] = 1
    # all other pixels are off by 1, and the first by so much that its term swallows 2
    problem.x[:], problem.x[0, 0], layer.weight[0] = 1.5, 16_384.5, 8192
    need = PASSED._replace(x=x)
    assert chosen(problem, need) != x
    exact, exact_gradients = reference.value_and_gradients(problem, need)
    moments, gradients = schedule.value_and_gradients(problem, need)
    of_a_lane = PANELS_OF_A_SUM * WIDE.columns
    assert abs(exact.mean[0] - moments.mean[0]) <= of_a_lane
    # their slopes are 1/2; the ordinary pass adds the columns of a product one by one
    lost = 0.5 * (COLUMNS_OF_A_SUM if x else of_a_lane)
    rounding = abs(np.spacing(gradients.mu[0, 0]))
    assert abs(exact_gradients.mu[0, 0] - gradients.mu[0, 0]) <= lost + rounding


def test_many_chunks_and_tasks(latent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_left", {})
    monkeypatch.setattr(layout, "TASKS_OF_A_THIN_CHUNK", 4)
    monkeypatch.setattr(layout, "BYTES_OF_A_THIN_TASK", 4 << 10)
    problem = weighted_problem(3, latent, 41, 501, shared=False)
    chunks, tasks = chunks_and_tasks(problem)
    assert chunks > 4
    assert tasks > 2
    assert_right(problem, random_upstream(problem))


def test_cuts_change_sums_by_rounding_alone(latent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = weighted_problem(3, latent, 41, 501)
    whole, gradients = schedule.value_and_gradients(problem, PASSED)
    errors = schedule.errors(problem)
    monkeypatch.setattr(memory, "_left", {})
    monkeypatch.setattr(layout, "TASKS_OF_A_THIN_CHUNK", 2)
    monkeypatch.setattr(layout, "BYTES_OF_A_THIN_TASK", 1)
    assert chunks_and_tasks(problem)[0] > 9
    parts, others = schedule.value_and_gradients(problem, PASSED)
    # what belongs to a sample, or is summed in float64, does not depend on cuts
    np.testing.assert_array_equal(schedule.errors(problem), errors)
    np.testing.assert_array_equal(parts.mean, whole.mean)
    assert_near(gradients, others, problem, np.full((3, 501), 1 / 501))


def test_the_same_bits_for_any_number_of_threads(latent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "WORTH_A_HELPER", 0)
    problem = weighted_problem(3, latent, 70, 2001)
    assert chunks_and_tasks(problem)[1] > 2
    upstream = random_upstream(problem)
    moments, gradients = schedule.value_and_gradients(problem, PASSED, 1)
    product, errors = schedule.gradients(problem, upstream, PASSED, 1), schedule.errors(problem, 1)
    for threads in (2, 3):
        again, same = schedule.value_and_gradients(problem, PASSED, threads)
        np.testing.assert_array_equal(again, moments)
        assert_same(gradients, same)
        assert_same(product, schedule.gradients(problem, upstream, PASSED, threads))
        np.testing.assert_array_equal(schedule.errors(problem, threads), errors)


def test_it_agrees_with_the_ordinary_pass(latent: int) -> None:
    problem = weighted_problem(3, latent, 70, 300)
    ordinary_need = PASSED._replace(x=True)
    assert not chosen(problem, ordinary_need)
    for upstream in (None, random_upstream(problem)):
        if upstream is None:
            thin, ordinary = (schedule.value_and_gradients(problem, need) for need in (PASSED, ordinary_need))
            np.testing.assert_allclose(thin[0], ordinary[0], rtol=1e-5)
            assert_near(thin[1], ordinary[1], problem, np.full((3, 300), 1 / 300))
        else:
            thin, ordinary = (schedule.gradients(problem, upstream, need) for need in (PASSED, ordinary_need))
            assert_near(thin, ordinary, problem, upstream)


def test_an_upstream_of_ones_is_the_sum() -> None:
    problem = weighted_problem(3, 3, 41, 64)
    ones = schedule.gradients(problem, np.full((3, 64), 1 / 64, np.float32), PASSED)
    # 1/64 is a power of two, so that scaling before the sum is scaling after it
    assert_same(ones, schedule.value_and_gradients(problem, PASSED)[1])


@given(mu=st.booleans(), logvar=st.booleans(), weight=st.booleans(), bias=st.booleans(), latent=st.sampled_from([1, 4]))
def test_what_nobody_needs_changes_nothing(mu: bool, logvar: bool, weight: bool, bias: bool, latent: int) -> None:
    problem = weighted_problem(3, latent, 41, 67)
    moments, every = schedule.value_and_gradients(problem, PASSED)
    need = Need(False, False, mu, logvar, ((weight, bias),))
    same, some = schedule.value_and_gradients(problem, need)
    np.testing.assert_array_equal(same, moments)
    assert set(named(some)) == {name for name, flag in named(need).items() if flag}
    assert_same(some, every)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_show_in_their_datum_alone(bad: float) -> None:
    problem = weighted_problem(3, 2, 41, 7)
    assert problem.weight is not None
    problem.weight[0, [5, 6]] = 1, 0
    problem.x[1, 5] = bad
    problem.x[2, 6] = bad  # excluded
    moments, gradients = schedule.value_and_gradients(problem, PASSED)
    np.testing.assert_array_equal(np.isfinite(moments.mean), [True, False, True])
    np.testing.assert_array_equal(np.isfinite(gradients.mu).all(1), [True, False, True])
    np.testing.assert_array_equal(np.isfinite(gradients.layers[0][1]), np.arange(41) != 5)


@pytest.mark.parametrize("pixels", [20, 33, 64])
def test_an_infinite_latent(pixels: int) -> None:
    assert_an_infinite_latent_is_saturation(random_problem(2, 1, pixels, 7), PASSED)


def test_an_empty_batch() -> None:
    problem = weighted_problem(0, 2, 41, 7)
    moments, gradients = schedule.value_and_gradients(problem, PASSED)
    assert moments.mean.shape == (0,)
    assert not any(array.any() for array in named(gradients).values())


@pytest.mark.parametrize(
    ("lanes", "itemsize", "most"), [(4, 4, 1), (8, 4, 2), (16, 4, 4), (2, 8, 0), (4, 8, 1), (8, 8, 2)]
)
def test_where_it_is_chosen(lanes: int, itemsize: int, most: int) -> None:
    real = np.dtype(f"f{itemsize}")
    shape = Shape(real.name, 8, 2, lanes)
    for latent in range(6):
        problem = random_problem(2, latent, 20, 4, real=real.type) if latent else without_latents(real)
        for need in (PASSED, NOTHING, PASSED._replace(logvar=False)):
            assert is_thin(kind_of(problem, need, shape)) == (1 <= latent <= most)
        for need in (PASSED._replace(x=True), PASSED._replace(weight=True)):
            assert not is_thin(kind_of(problem, need, shape))


def without_latents(real: Any) -> Problem:
    nothing = np.zeros((2, 0), real)
    return Problem(
        np.zeros((2, 20), real), nothing, nothing, (Layer(np.zeros((20, 0), real), np.zeros(20, real)),), Draw(4)
    )


def test_no_sums_beyond_a_chunk_and_no_more_than_one_layer() -> None:
    problem = random_problem(1, 1, 20, 4)
    pixels = layout.BYTES_OF_A_CHUNK // (2 * layout.TASKS_OF_A_THIN_CHUNK * 4)
    assert chosen(random_problem(1, 1, pixels, 1))
    assert not chosen(random_problem(1, 1, pixels + 1, 1))
    (layer,) = problem.layers
    first = Layer(np.ones((1, 1), np.float32), np.ones(1, np.float32), layer.activation)
    deep = replace(problem, layers=(first, layer))
    assert not chosen(deep, PASSED._replace(layers=((True, True),) * 2))
