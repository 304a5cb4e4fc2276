"""The fused pass against the reference: values, every gradient, and everything that must not change a result."""

from __future__ import annotations

import doctest
import itertools
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mcelbo_kernels import reference
from mcelbo_kernels.cpu import layout, memory, schedule
from mcelbo_kernels.cpu.cell import Cell
from mcelbo_kernels.cpu.layers import ROWS_OF_A_SUM
from mcelbo_kernels.cpu.shape import Shape
from mcelbo_kernels.problem import ACTIVATIONS, Activation, Draw, Gradients, Layer, Need, Problem
from tests.bounds import magnitudes
from tests.strategies import away_from_kinks, problems, upstreams
from tests.torch_twin import named, torch_twin

Array = Any
# In epsilons of the magnitudes of all terms, which already count each error where it enters; a sum of N terms in order
# adds a random walk of half an epsilon a step (Higham and Mary 2019), allowed for at two standard deviations.
ROUNDINGS = 4
NARROW, WIDE = Shape("float32", 8, 2, 4), Shape("float32", 12, 2, 16)
# Each pair of activations, dtype, sampler and kind of weight is a kernel to compile: all activations meet in one test,
# and the others share these few.
DRAWN = ("iid", "antithetic", "injected")
one_layer = problems(max_layers=1, names=("sigmoid",), cells=("squared_error",), samplers=DRAWN)
stacks = problems(
    min_layers=2, max_layers=4, names=("tanh",), cells=("squared_error",), samplers=DRAWN, dtypes=(np.float32,)
)


def slack(problem: Problem) -> float:
    """The relative error that is granted to a sum of terms."""
    rows = len(problem.x) * problem.draw.num_samples
    return float((ROUNDINGS + rows**0.5) * np.finfo(problem.x.dtype).eps)


def assert_gradients(got: Gradients, problem: Problem, upstream: Array) -> None:
    """|ours - exact| <= 2 |torch in the same precision - exact| + the roundings of the terms."""
    exact = named(reference.gradients(problem, upstream, Need.everything(problem)))
    peer = torch_twin(problem, torch.from_numpy(problem.x).dtype).gradients(upstream)
    bound = magnitudes(problem, upstream)
    for name, ours in named(got).items():
        assert ours.dtype == problem.x.dtype
        assert ours.shape == exact[name].shape
        allowed = 2 * np.abs(peer[name] - exact[name]) + slack(problem) * bound[name]
        assert (np.abs(ours - exact[name]) <= allowed).all(), name


def assert_same(one: Gradients, other: Gradients) -> None:
    """Bit for bit."""
    for name, array in named(one).items():
        np.testing.assert_array_equal(array, named(other)[name])


def random_problem(
    batch: int, latent: int, pixels: int, n: int, activation: str = "sigmoid", real: Any = np.float32, **fields: Any
) -> Problem:
    """A problem of order one with a seed of its own."""
    rng = np.random.default_rng(batch + 10 * latent + 100 * pixels)

    def normal(*size: int) -> Array:
        return rng.standard_normal(size).astype(real)

    layer = Layer(normal(pixels, latent) / real(latent**0.5), normal(pixels), Activation(activation, 0.3))
    return Problem(normal(batch, pixels), normal(batch, latent), normal(batch, latent), (layer,), Draw(n, 3), **fields)


@given(problem=one_layer | stacks)
def test_errors(problem: Problem) -> None:
    errors = schedule.errors(problem)
    assert errors.dtype == problem.x.dtype
    assert (np.abs(errors - reference.errors(problem)) <= slack(problem) * magnitudes(problem)["errors"]).all()


@given(problem=one_layer | stacks)
def test_value_and_gradients(problem: Problem) -> None:
    n = problem.draw.num_samples
    moments, gradients = schedule.value_and_gradients(problem, Need.everything(problem))
    assert_gradients(gradients, problem, np.full((len(problem.x), n), 1 / n))
    exact = reference.errors(problem)
    size = magnitudes(problem)["errors"]
    assert (np.abs(moments.mean - exact.mean(1)) <= slack(problem) * size.mean(1)).all()
    deviation = np.abs(exact - exact.mean(1, keepdims=True))
    allowed = 2 * slack(problem) * (deviation * size).sum(1) + (slack(problem) * size).sum(1) ** 2
    assert (np.abs(moments.squares - (deviation**2).sum(1)) <= allowed + 1e-12).all()


@given(data=st.data(), problem=one_layer | stacks)
def test_vector_jacobian_product(data: st.DataObject, problem: Problem) -> None:
    upstream = data.draw(upstreams(problem))
    assert_gradients(schedule.gradients(problem, upstream, Need.everything(problem)), problem, upstream)


def hidden_problem(name: str, real: Any) -> Problem:
    """An activation between two layers, with numbers that rounding moves across no kink."""
    for seed in itertools.count():
        rng = np.random.default_rng(seed)
        first, last = (
            Layer(
                (rng.standard_normal((after, before)) * before**-0.5).astype(real),
                rng.standard_normal(after).astype(real),
                Activation(kind, 0.3),
            )
            for kind, before, after in ((name, 7, 19), ("sigmoid", 19, 41))
        )
        x, mu, logvar = (rng.standard_normal((3, size)).astype(real) for size in (41, 7, 7))
        weight = np.linspace(0, 2, 41, dtype=real)[None]
        problem = Problem(x, mu, logvar, (first, last), Draw(29, 3), weight=weight)
        if away_from_kinks(problem):
            return problem
    raise AssertionError


# As outputs they are in tests/test_cells.py.
@pytest.mark.parametrize("real", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str, real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # one kernel for a decoder of them all, of which each problem takes one
    monkeypatch.setattr(memory, "_left", {})
    monkeypatch.setattr(layout, "Cell", lambda output, hidden, *fields: Cell(output, ACTIVATIONS, *fields))
    problem = hidden_problem(name, real)
    upstream = np.random.default_rng(0).standard_normal((3, 29)).astype(real)
    assert_gradients(schedule.gradients(problem, upstream, Need.everything(problem)), problem, upstream)


@given(
    problem=problems(max_layers=1, names=("sigmoid",), cells=("squared_error",), samplers=DRAWN, dtypes=(np.float32,)),
    data=st.data(),
)
def test_what_nobody_needs_is_left_out_and_changes_nothing(problem: Problem, data: st.DataObject) -> None:
    weighted = problem.weight is not None
    need = Need(
        *(data.draw(st.booleans()) and allowed for allowed in (True, weighted, True, True)),
        layers=((data.draw(st.booleans()), data.draw(st.booleans())),),
    )
    moments, some = schedule.value_and_gradients(problem, need)
    everything = Need.everything(problem)
    if layout.is_thin(layout.kind_of(problem, need, schedule.host_shape(problem.x.dtype.name))):
        # another pass, which sums in another order
        everything = everything._replace(x=False, weight=False)
    all_moments, every = schedule.value_and_gradients(problem, everything)
    wanted = {name for name, flag in named(need).items() if flag}
    assert set(named(some)) == wanted
    assert_same(some, every)
    np.testing.assert_array_equal(moments.mean, all_moments.mean)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [NARROW, WIDE], ids=str)
@settings(max_examples=20)
@given(
    problem=problems(max_layers=1, names=("sigmoid",), cells=("squared_error",), samplers=DRAWN, dtypes=(np.float32,))
)
def test_other_machines_tiles(tile: Shape, problem: Problem) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "host_shape", lambda real: tile)
        gradients = schedule.value_and_gradients(problem, Need.everything(problem))[1]
    n = problem.draw.num_samples
    assert_gradients(gradients, problem, np.full((len(problem.x), n), 1 / n))


@pytest.mark.parametrize("rows", [1, 12, 100])
def test_length_of_a_chunk(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(3, 5, 33, 67)
    monkeypatch.setattr(memory, "_left", {})
    monkeypatch.setattr(layout, "ROWS_OF_A_CHUNK", rows)
    upstream = np.full((3, 67), 1 / 67)
    assert_gradients(schedule.value_and_gradients(problem, Need.everything(problem))[1], problem, upstream)
    np.testing.assert_allclose(schedule.errors(problem), reference.errors(problem), rtol=1e-5)


@given(problem=one_layer | stacks)
def test_slices_of_a_batch_and_parts_of_the_samples_see_the_noise_of_the_whole(problem: Problem) -> None:
    # the rows that share a tile differ, so equal noise shows in equal errors only because a row never meets another
    errors, draw = schedule.errors(problem), problem.draw
    assume(draw.eps is None)
    for b in range(len(problem.x)):
        weight = problem.weight if problem.weight is None or len(problem.weight) == 1 else problem.weight[b : b + 1]
        datum = replace(
            problem,
            x=problem.x[b : b + 1],
            mu=problem.mu[b : b + 1],
            logvar=problem.logvar[b : b + 1],
            weight=weight,
            draw=replace(draw, datum_offset=draw.datum_offset + b),
        )
        np.testing.assert_array_equal(schedule.errors(datum)[0], errors[b])
    step = 2 if draw.sampler == "antithetic" else 1
    cut = draw.num_samples // 2 // step * step
    if cut:
        rest = replace(draw, num_samples=draw.num_samples - cut, sample_offset=draw.sample_offset + cut)
        np.testing.assert_array_equal(schedule.errors(replace(problem, draw=rest)), errors[:, cut:])


def test_the_same_call_gives_the_same_bits_a_hundred_times() -> None:
    problem = random_problem(5, 3, 37, 130)
    moments, gradients = schedule.value_and_gradients(problem, Need.everything(problem))
    for _ in range(100):
        again, same = schedule.value_and_gradients(problem, Need.everything(problem))
        assert_same(gradients, same)
        np.testing.assert_array_equal(again, moments)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["identity", "sigmoid", "relu"])
def test_nan_and_infinity_show_in_their_datum_alone(bad: float, name: str) -> None:
    problem = random_problem(3, 4, 20, 7, name)
    problem.x[1, 5] = bad
    moments, gradients = schedule.value_and_gradients(problem, Need.everything(problem))
    np.testing.assert_array_equal(np.isfinite(moments.mean), [True, False, True])
    np.testing.assert_array_equal(np.isfinite(gradients.mu).all(1), [True, False, True])
    assert not np.isfinite(gradients.layers[0][0]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shared", [True, False])
def test_a_weight_of_zero_excludes_whatever_the_pixel_holds(bad: float, shared: bool) -> None:
    problem = random_problem(3, 4, 20, 7)
    weight = np.ones((1 if shared else 3, 20), np.float32)
    weight[:, 5] = 0
    clean = replace(problem, weight=weight)
    dirty = replace(clean, x=problem.x.copy())
    dirty.x[:, 5] = bad
    need = Need.everything(clean)._replace(weight=False)
    moments, gradients = schedule.value_and_gradients(clean, need)
    dirty_moments, dirty_gradients = schedule.value_and_gradients(dirty, need)
    np.testing.assert_array_equal(dirty_moments, moments)
    assert_same(gradients, dirty_gradients)


def test_nan_in_a_parameter_is_not_swallowed() -> None:
    for field in ("mu", "logvar"):
        problem = random_problem(2, 3, 20, 4, "relu")
        getattr(problem, field)[1, 0] = np.nan
        np.testing.assert_array_equal(np.isnan(schedule.errors(problem)).all(1), [False, True])
    problem = random_problem(2, 3, 20, 4, "relu")
    problem.layers[0].weight[3, 1] = np.nan
    assert np.isnan(schedule.errors(problem)).all()


def test_infinite_results_come_without_a_warning() -> None:
    problem = random_problem(2, 2, 20, 4, "identity")
    problem.logvar[:] = 300
    moments, gradients = schedule.value_and_gradients(problem, Need.everything(problem))
    assert not np.isfinite(moments.mean).any()
    assert not np.isfinite(gradients.logvar).any()
    assert not np.isfinite(schedule.errors(problem)).any()


def test_equal_errors_have_no_negative_variance() -> None:
    problem = random_problem(50, 3, 20, 1)
    assert (schedule.value_and_gradients(problem, Need.everything(problem))[0].squares == 0).all()
    still = random_problem(50, 3, 20, 9)
    still.logvar[:] = -np.inf
    assert (schedule.value_and_gradients(still, Need.everything(still))[0].squares == 0).all()


def test_an_infinite_pixel_gives_an_infinite_sum() -> None:
    problem = random_problem(2, 3, 20, 4)
    problem.x[0, 7] = np.inf
    mean = schedule.value_and_gradients(problem, Need.everything(problem))[0].mean
    assert mean[0] == np.inf
    assert np.isfinite(mean[1])


def assert_an_infinite_latent_is_saturation(problem: Problem, need: Need) -> None:
    """An infinite latent is 0 or 1 in a sigmoid's pixels, and nothing beside them: T is finite."""
    problem.mu[0, 0] = np.inf
    exact, exact_gradients = reference.value_and_gradients(problem, need)
    moments, gradients = schedule.value_and_gradients(problem, need)
    assert np.isfinite(exact.mean).all()
    np.testing.assert_allclose(moments.mean, exact.mean, rtol=1e-5)
    for name, array in named(exact_gradients).items():
        np.testing.assert_allclose(named(gradients)[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("pixels", [20, 33, 64])
def test_an_infinite_latent(pixels: int) -> None:
    problem = random_problem(2, 4, pixels, 7)
    assert_an_infinite_latent_is_saturation(problem, Need.everything(problem))


def test_an_empty_batch() -> None:
    problem = random_problem(0, 5, 20, 4)
    moments, gradients = schedule.value_and_gradients(problem, Need.everything(problem))
    assert moments.mean.shape == (0,)
    assert schedule.errors(problem).shape == (0, 4)
    for name, array in named(gradients).items():
        assert not array.any(), name
    assert gradients.layers[0][0].shape == (20, 5)


def test_the_question_s_own_case() -> None:
    # 28 x 28 pixels, one latent, n = 10,000
    problem = random_problem(1, 1, 784, 10_000)
    need = Need.everything(problem)
    exact, exact_gradients = reference.value_and_gradients(problem, need)
    moments, gradients = schedule.value_and_gradients(problem, need)
    # 10,000 errors of a relative 1e-7 each, in float64 totals
    np.testing.assert_allclose(moments.mean, exact.mean, rtol=1e-6)
    np.testing.assert_allclose(moments.squares, exact.squares, rtol=1e-5)
    for name, array in named(exact_gradients).items():
        np.testing.assert_allclose(named(gradients)[name], array, rtol=1e-5, atol=1e-5 * np.abs(array).max())


def test_a_million_pixels() -> None:
    problem = random_problem(1, 2, 1_000_003, 2)
    np.testing.assert_allclose(schedule.errors(problem), reference.errors(problem), rtol=1e-6)
    need = Need(False, False, True, True, ((False, False),))
    exact = reference.value_and_gradients(problem, need)[1]
    gradients = schedule.value_and_gradients(problem, need)[1]
    np.testing.assert_allclose(gradients.mu, exact.mu, rtol=1e-4)


def test_beside_one_large_sample_only_those_of_its_own_sum_are_lost() -> None:
    """However long a chunk is, few rows are added up in single precision: little can be lost of a great many."""
    n, pixels = 4096, 33
    problem = random_problem(1, 5, pixels, n)
    (layer,) = problem.layers
    # all slopes are -1/2: the samples are 0, sigmoid is 1/2 there and every pixel 1 more
    layer.weight[:], layer.bias[:], problem.mu[:], problem.logvar[:], problem.x[:] = 1, 0, 0, -np.inf, 1.5
    need = Need.everything(problem)
    kind = layout.kind_of(problem, need, schedule.host_shape("float32"))
    assert layout.lay_out(kind).capacity > 4 * ROWS_OF_A_SUM
    upstream = np.ones((1, n), np.float32)
    upstream[0, 0] = 2**26
    found = schedule.gradients(problem, upstream, need)
    for array, slope in ((found.layers[0][1], 0.5), (found.mu, 0.5 * pixels)):
        exact = -slope * (2**26 + n - 1)
        assert (np.abs(array - exact) <= slope * ROWS_OF_A_SUM + np.abs(np.spacing(array))).all()


@pytest.mark.slow
def test_more_than_two_to_the_31_cells() -> None:
    # y = z w with sigma = 1, mu = 0 and x = 0: T = |w|^2 chi^2, so the mean of T / |w|^2 is 1 +- sqrt(2/n)
    n, pixels = 3_000_000, 784
    w = np.full((pixels, 1), 1 / 28, np.float32)
    zero = np.zeros((1, 1), np.float32)
    layer = Layer(w, np.zeros(pixels, np.float32))
    problem = Problem(np.zeros((1, pixels), np.float32), zero, zero, (layer,), Draw(n, 1))
    assert n * pixels > 2**31
    moments, gradients = schedule.value_and_gradients(problem, Need(False, False, True, True, ((True, True),)))
    # five standard errors: a false alarm in two million seeds
    assert moments.mean[0] == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert gradients.logvar[0, 0] == pytest.approx(moments.mean[0], rel=1e-5)
    np.testing.assert_allclose(gradients.layers[0][0][:, 0] * w[0, 0] * pixels, 2 * moments.mean[0], rtol=1e-5)


def peak_allocation(problem: Problem, need: Need) -> int:
    """Bytes that a call has allocated at most, at a time, where none before it left any behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_left", {})
        tracemalloc.start()
        try:
            schedule.value_and_gradients(problem, need)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("x", [True, False])
def test_memory_does_not_grow_with_the_samples(x: bool) -> None:
    problems = [random_problem(4, 2, 784, n) for n in (10_000, 100_000)]
    need = Need.everything(problems[0])._replace(x=x)
    shape = schedule.host_shape("float32")
    few, many = (layout.lay_out(layout.kind_of(problem, need, shape)) for problem in problems)
    assert few.capacity == many.capacity
    schedule.value_and_gradients(random_problem(4, 2, 784, 600), need)
    peaks = [peak_allocation(problem, need) for problem in problems]
    assert peaks[0] > few.values * problems[0].x.itemsize
    assert peaks[1] < peaks[0] + (1 << 16)


def test_the_examples_of_the_docstrings() -> None:
    outcome = doctest.testmod(schedule)
    assert outcome.attempted
    assert not outcome.failed


def deep_problem(n: int = 130, **fields: Any) -> Problem:
    """Four layers with widths beyond two panels, in panels' multiples and beside them."""
    widths, rng = (5, 33, 16, 47, 70), np.random.default_rng(0)
    names = ("relu", "silu", "relu", "sigmoid")

    def normal(*size: int) -> Array:
        return rng.standard_normal(size).astype(np.float32)

    layers = tuple(
        Layer(normal(after, before) / np.float32(before**0.5), normal(after), Activation(name))
        for before, after, name in zip(widths, widths[1:], names, strict=False)
    )
    return Problem(normal(6, 70), normal(6, 5), normal(6, 5), layers, Draw(n, 3), **fields)


def test_layers_with_different_activations() -> None:
    problem = deep_problem(weight=np.linspace(0, 2, 70, dtype=np.float32)[None])
    upstream = np.random.default_rng(1).standard_normal((6, 130)).astype(np.float32)
    assert_gradients(schedule.gradients(problem, upstream, Need.everything(problem)), problem, upstream)


def test_layers_below_the_lowest_that_is_needed_are_left_out() -> None:
    problem = deep_problem(weight=np.linspace(0, 2, 70, dtype=np.float32)[None])
    everything = named(schedule.value_and_gradients(problem, Need.everything(problem))[1])
    for lowest in range(4):
        layers = tuple((index >= lowest, index > lowest) for index in range(4))
        found = named(schedule.value_and_gradients(problem, Need(False, False, False, False, layers))[1])
        assert len(found) == 7 - 2 * lowest
        for name, array in found.items():
            np.testing.assert_array_equal(array, everything[name])


def test_deep_decoders_give_the_same_bits_for_any_number_of_threads() -> None:
    problem = deep_problem(n=700)
    need = Need.everything(problem)
    moments, gradients = schedule.value_and_gradients(problem, need, 1)
    for threads in (2, 3, 2, 5):
        again, same = schedule.value_and_gradients(problem, need, threads)
        np.testing.assert_array_equal(again, moments)
        assert_same(gradients, same)


@pytest.mark.parametrize("layer", range(4))
def test_nan_in_any_layer_shows(layer: int) -> None:
    problem = deep_problem()
    problem.layers[layer].bias[2] = np.nan
    moments, gradients = schedule.value_and_gradients(problem, Need.everything(problem))
    assert np.isnan(moments.mean).all()
    assert np.isnan(gradients.layers[0][0]).any()


def test_an_upstream_of_the_wrong_shape_is_refused() -> None:
    problem = random_problem(2, 3, 20, 4)
    with pytest.raises(ValueError, match=r"upstream has shape \(4,\): expected"):
        schedule.gradients(problem, np.ones(4, np.float32), Need.everything(problem))
