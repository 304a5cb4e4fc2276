"""Sums by the quadratic form of the last hidden layer: against the reference and against the grid."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from mcelbo_kernels import cpu, reference
from mcelbo_kernels.alternatives import applies
from mcelbo_kernels.cpu import gram
from mcelbo_kernels.cpu.layers import PANELS_OF_A_SUM
from mcelbo_kernels.cpu.quadratic import mirrored
from mcelbo_kernels.cpu.shape import host_shape
from mcelbo_kernels.problem import Activation, Draw, Layer, Need, Problem
from tests.strategies import problems
from tests.test_grid import DRAWN
from tests.torch_twin import named

Array = Any
# Few kernels to compile, see tests/test_grid.py.
quadratic = problems(
    max_layers=2,
    names=("tanh",),
    outputs=("identity",),
    cells=("squared_error",),
    samplers=DRAWN,
    weights=("none", "shared"),
)


def assert_right(problem: Problem) -> None:
    """Moments and gradients within the roundings of their terms."""
    need = Need.everything(problem)
    exact, exact_gradients = reference.value_and_gradients(problem, need)
    moments, gradients = cpu.value_and_gradients(problem, need, algorithm="gram")
    n = problem.draw.num_samples
    # the terms are those of the direct sum about another origin: of order one, as the data are
    eps = (100 + 10 * (len(problem.x) * n) ** 0.5) * np.finfo(problem.x.dtype).eps
    size = max([1.0, *(np.abs(array).max(initial=0) for array in (exact.mean, *named(exact_gradients).values()))])
    assert set(named(gradients)) == set(named(exact_gradients))
    for name, array in named(exact_gradients).items():
        found = named(gradients)[name]
        assert found.shape == array.shape
        assert found.dtype == problem.x.dtype
        assert np.abs(found - array).max(initial=0) <= eps * size, name
    assert np.abs(moments.mean - exact.mean).max(initial=0) <= eps * size
    assert np.abs(moments.squares - exact.squares).max(initial=0) <= eps * n * size**2


@given(problem=quadratic)
def test_against_the_reference(problem: Problem) -> None:
    assert applies(problem)
    assert_right(problem)


def test_sobol_points_are_drawn_for_it_too() -> None:
    # of numbers of order one: samples as close as those of `well_fitted` would be near one another whatever is drawn
    problem = well_fitted(np.float32)
    assert_right(replace(problem, logvar=np.zeros_like(problem.logvar), draw=Draw(29, 1, "sobol")))


def well_fitted(real: Any, hidden: int | None = None, n: int = 64) -> Problem:
    """Data of order one that the decoder fits to a thousandth, with samples as close."""
    rng = np.random.default_rng(0)
    batch, latent, pixels = 6, 5, 70
    layers = []
    widths = (latent, pixels) if hidden is None else (latent, hidden, pixels)
    for inputs, outputs in pairwise(widths):
        name = "identity" if outputs == pixels else "tanh"
        weight = rng.standard_normal((outputs, inputs)) / inputs**0.5
        layers.append(Layer(weight.astype(real), rng.standard_normal(outputs).astype(real), Activation(name)))
    mu = rng.standard_normal((batch, latent)).astype(real)
    h = mu
    for layer in layers:
        h = h @ layer.weight.T + layer.bias
        h = np.tanh(h) if layer.activation.name == "tanh" else h
    x = (h + 1e-3 * rng.standard_normal(h.shape)).astype(real)
    logvar = np.full((batch, latent), 2 * np.log(1e-3), real)
    return Problem(x, mu, logvar, tuple(layers), Draw(n, 1))


@pytest.mark.parametrize("hidden", [None, 33])
def test_a_well_fitted_model_is_summed_as_exactly_as_by_the_grid(hidden: int | None) -> None:
    problem = well_fitted(np.float32, hidden)
    need = Need.everything(problem)
    exact, exact_gradients = reference.value_and_gradients(problem, need)
    moments, gradients = cpu.value_and_gradients(problem, need, algorithm="gram")
    direct, direct_gradients = cpu.value_and_gradients(problem, need, algorithm="grid")
    error, error_of_grid = (np.abs(found.mean / exact.mean - 1).max() for found in (moments, direct))
    assert error <= error_of_grid + 1e-6
    for name, truth in named(exact_gradients).items():
        ours, theirs = (np.abs(named(found)[name] - truth).max() for found in (gradients, direct_gradients))
        assert ours <= theirs + 1e-6 * np.abs(truth).max(), name


def test_beside_one_large_term_only_those_of_its_own_sum_are_lost() -> None:
    """However wide the layer is, few of a row's terms are added up in single precision."""
    shape = host_shape("float32")
    latent = 2 * PANELS_OF_A_SUM * shape.width
    # two pixels, one of the first latent alone and one of all others: t is 2^26 and others^2, both about 0
    weight, eps = np.ones((2, latent), np.float32), np.full((1, 1, latent), 2**-7, np.float32)
    weight[0, 1:], weight[1, 0], eps[0, 0, 0] = 0, 0, 2**13
    nothing = np.zeros((1, latent), np.float32)
    layer = Layer(weight, np.zeros(2, np.float32))
    problem = Problem(np.zeros((1, 2), np.float32), nothing, nothing, (layer,), Draw(1, eps=eps))
    need = Need.nothing(problem)._replace(mu=True)
    mean = gram.value_and_gradients(problem, need)[0].mean[0]
    others = (latent - 1) * 2.0**-7
    # a lane adds up one vector's terms after the other
    lost = PANELS_OF_A_SUM * shape.columns * others * 2.0**-7
    assert abs(mean - (2.0**26 + others**2)) <= 1.1 * lost


def test_frozen_parts_are_left_out_and_change_nothing() -> None:
    problem = replace(well_fitted(np.float32, 33), weight=np.linspace(0, 2, 70, dtype=np.float32)[None])
    everything = named(gram.value_and_gradients(problem, Need.everything(problem))[1])
    for x, weight, mu, first, second, bias in np.ndindex(2, 2, 2, 2, 2, 2):
        layers = ((bool(first), False), (bool(second), bool(bias)))
        need = Need(bool(x), bool(weight), bool(mu), False, layers)
        found = named(gram.value_and_gradients(problem, need)[1])
        assert len(found) == x + weight + mu + first + second + bias
        for name, array in found.items():
            np.testing.assert_array_equal(array, everything[name])


def test_the_same_bits_for_any_number_of_threads() -> None:
    problem = well_fitted(np.float32, 33, n=2000)
    need = Need.everything(problem)
    moments, gradients = gram.value_and_gradients(problem, need, 1)
    for threads in (2, 3):
        again, same = gram.value_and_gradients(problem, need, threads)
        np.testing.assert_array_equal(again, moments)
        for name, array in named(gradients).items():
            np.testing.assert_array_equal(named(same)[name], array)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_of_zero_excludes_whatever_the_pixel_holds(bad: float) -> None:
    clean = replace(well_fitted(np.float32), weight=np.ones((1, 70), np.float32))
    assert clean.weight is not None
    clean.weight[:, 5] = 0
    dirty = replace(clean, x=clean.x.copy())
    dirty.x[:, 5] = bad
    need = Need.everything(clean)._replace(weight=False)
    one, other = (gram.value_and_gradients(problem, need) for problem in (clean, dirty))
    np.testing.assert_array_equal(one[0], other[0])
    for name, array in named(one[1]).items():
        np.testing.assert_array_equal(named(other[1])[name], array)


def test_where_it_does_not_apply() -> None:
    problem = well_fitted(np.float32)
    need = Need.everything(problem)
    each = replace(problem, weight=np.ones((6, 70), np.float32))
    sigmoid = replace(problem, layers=(replace(problem.layers[0], activation=Activation("sigmoid")),))
    logits = replace(problem, cell="bernoulli")
    for other in (each, sigmoid, logits):
        with pytest.raises(ValueError, match="algorithm is 'gram': expected the squared error"):
            cpu.value_and_gradients(other, need, algorithm="gram")
    with pytest.raises(ValueError, match="algorithm is 'fast': expected one of 'auto', 'grid', 'gram'"):
        cpu.value_and_gradients(problem, need, algorithm="fast")


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 40])
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_mirrored_makes_the_lower_half_both(size: int, real: Any) -> None:
    s = np.random.default_rng(0).standard_normal((size, size)).astype(real)
    expected = 2 * (np.tril(s) + np.tril(s, -1).T)
    assert mirrored(s, real(2)) is not None
    np.testing.assert_array_equal(s, expected)


def test_it_is_taken_where_it_costs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Problem] = []

    def note(problem: Problem, *rest: Any) -> Any:
        taken.append(problem)
        return gram_itself(problem, *rest)

    gram_itself = gram.value_and_gradients
    monkeypatch.setattr(gram, "value_and_gradients", note)
    few, many = well_fitted(np.float32, n=2), well_fitted(np.float32, n=20_000)
    for problem in (few, many):
        cpu.value_and_gradients(problem, Need.everything(problem))
    assert taken == [many]


def test_a_value_alone_is_worth_less() -> None:
    # of three products of each sample the grid then needs one, but G stays what it is
    assert gram.pays(128, 16, 512, 784)
    assert not gram.pays(128, 16, 512, 784, gradient=False)
    assert gram.pays(128, 160, 512, 784, gradient=False)
