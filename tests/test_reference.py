"""The reference against torch's autograd in float64, and what it does with odd input."""

from __future__ import annotations

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcelbo_kernels import reference
from mcelbo_kernels.problem import SAMPLERS, Activation, Array, Draw, Layer, Need, Problem
from tests.strategies import problems, upstreams
from tests.torch_twin import named, torch_twin

EXACT = 1e-12  # relative: sums of up to 1e5 terms of order one, in float64, in another order than torch's


def assert_close(ours: Array, theirs: Array) -> None:
    """Assert agreement relative to the largest number of the array, or to one."""
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float64
    scale = max(1.0, np.abs(theirs).max(initial=0.0))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT * scale)


@given(st.data())
def test_values_are_those_of_torch(data: st.DataObject) -> None:
    problem = data.draw(problems())
    twin = torch_twin(problem)
    assert_close(reference.errors(problem), twin.errors.detach().numpy())
    assert_close(reference.log_ratios(problem), twin.log_ratios.detach().numpy())


@given(st.data())
def test_gradients_are_those_of_autograd(data: st.DataObject) -> None:
    problem = data.draw(problems())
    upstream = data.draw(upstreams(problem))
    ours = named(reference.gradients(problem, upstream, Need.everything(problem)))
    theirs = torch_twin(problem).gradients(upstream)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert_close(gradient, theirs[name])


@given(problems())
def test_value_and_gradients_are_the_mean_over_samples(problem: Problem) -> None:
    moments, gradients = reference.value_and_gradients(problem, Need.everything(problem))
    twin, n = torch_twin(problem), problem.draw.num_samples
    t = twin.errors.detach().numpy()
    assert_close(moments.mean, t.mean(axis=1))
    assert_close(moments.squares, t.var(axis=1) * n)
    theirs = twin.gradients(np.full(t.shape, 1 / n))
    for name, gradient in named(gradients).items():
        assert_close(gradient, theirs[name])


@given(st.data())
def test_only_what_is_needed_is_returned(data: st.DataObject) -> None:
    problem = data.draw(problems(max_layers=2))
    upstream = data.draw(upstreams(problem))
    flags = [data.draw(st.booleans()) for _ in range(4)]
    need = Need(*flags, tuple((data.draw(st.booleans()), data.draw(st.booleans())) for _ in problem.layers))
    everything = named(reference.gradients(problem, upstream, Need.everything(problem)))
    some = reference.gradients(problem, upstream, need)
    expected = {name for name, needed in named(need).items() if needed} & everything.keys()
    assert named(some).keys() == expected
    assert len(some.layers) == len(problem.layers)
    for name, gradient in named(some).items():
        np.testing.assert_array_equal(gradient, everything[name])


@given(problems(dtypes=[np.float32]))
def test_float32_is_computed_in_float64(problem: Problem) -> None:
    eps = reference.noise(problem.draw, *problem.mu.shape)
    double = Problem(
        x=problem.x.astype(float),
        mu=problem.mu.astype(float),
        logvar=problem.logvar.astype(float),
        layers=tuple(Layer(l.weight.astype(float), l.bias.astype(float), l.activation) for l in problem.layers),
        draw=Draw(problem.draw.num_samples, eps=eps),
        weight=None if problem.weight is None else problem.weight.astype(float),
        cell=problem.cell,
    )
    np.testing.assert_array_equal(reference.errors(problem), reference.errors(double))
    np.testing.assert_array_equal(reference.log_ratios(problem), reference.log_ratios(double))


@given(problems())
def test_kl_is_that_of_torch(problem: Problem) -> None:
    mu, logvar = torch.tensor(problem.mu.astype(float)), torch.tensor(problem.logvar.astype(float))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mu, (logvar / 2).exp()), normal(torch.zeros_like(mu), 1.0))
    assert_close(reference.kl(problem.mu, problem.logvar), expected.sum(1).numpy())


@given(problems(cells=["squared_error"]))
def test_samples_have_their_own_errors(problem: Problem) -> None:
    """mean_i ||x - y_i||^2 = ||x - ybar||^2 + mean_i ||y_i - ybar||^2, for any decoder, with weights too."""
    x, mu, sigma = problem.x.astype(float), problem.mu.astype(float), np.exp(problem.logvar.astype(float) / 2)
    layers = tuple(Layer(l.weight.astype(float), l.bias.astype(float), l.activation) for l in problem.layers)
    z = mu[:, None] + sigma[:, None] * reference.noise(problem.draw, *mu.shape)
    y = reference.decode(layers, z)  # (B, n, m)
    w = np.ones_like(x) if problem.weight is None else problem.weight.astype(float)
    centre = y.mean(axis=1)
    of_mean, spread = (w * (x - centre) ** 2).sum(1), (w[:, None] * (y - centre[:, None]) ** 2).sum(2).mean(1)
    assert_close(reference.errors(problem).mean(axis=1), of_mean + spread)


def small(**changes: object) -> Problem:
    """Return two data of three pixels under a decoder of two layers."""
    rng = np.random.default_rng(0)
    hidden = Layer(rng.normal(size=(4, 2)), rng.normal(size=4), Activation("tanh"))
    last = Layer(rng.normal(size=(3, 4)), rng.normal(size=3), Activation("sigmoid"))
    problem = Problem(rng.normal(size=(2, 3)), rng.normal(size=(2, 2)), np.zeros((2, 2)), (hidden, last), Draw(5))
    return replace(problem, **changes)


MASK = np.array([[1.0, 0.0, 2.0], [1.0, 1.0, 1.0]])  # pixel 1 of datum 0 is left out


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_pixel_of_weight_zero_may_hold_anything(hole: float) -> None:
    problem, need = small(weight=MASK), Need(True, True, True, True, ((True, True),) * 2)
    punched = problem.x.copy()
    punched[0, 1] = hole
    with_hole = replace(problem, x=punched)
    upstream = np.arange(10.0).reshape(2, 5) - 3
    np.testing.assert_array_equal(reference.errors(with_hole), reference.errors(problem))
    whole, holed = (named(reference.gradients(p, upstream, need)) for p in (problem, with_hole))
    assert whole["x"][0, 1] == 0
    assert not np.isfinite(holed.pop("weight")[0, 1])  # d/dw stays (x - y)^2
    for name, gradient in holed.items():
        np.testing.assert_array_equal(gradient, whole[name])


@pytest.mark.parametrize("activation", ["identity", "relu", "sigmoid", "softplus", "gelu"])
def test_output_of_a_pixel_of_weight_zero_may_be_anything(activation: str) -> None:
    hidden, last = small().layers
    bias = np.array([0.1, np.nan, 0.3])
    layers = (hidden, Layer(last.weight, bias, Activation(activation)))
    problem = small(layers=layers, weight=np.array([[1.0, 0.0, 2.0]]))
    moments, gradients = reference.value_and_gradients(problem, Need.everything(problem))
    assert np.isfinite(moments.mean).all()
    bare = gradients._replace(weight=None)
    assert all(np.isfinite(gradient).all() for gradient in named(bare).values())
    assert gradients.layers[1][1][1] == 0


def test_weight_zero_still_has_a_gradient() -> None:
    problem = small(weight=MASK)
    _, gradients = reference.value_and_gradients(problem, Need.everything(problem))
    unweighted = small(weight=np.ones((2, 3)))
    _, expected = reference.value_and_gradients(unweighted, Need.everything(unweighted))
    np.testing.assert_array_equal(gradients.weight, expected.weight)
    assert gradients.weight[0, 1] > 0


@pytest.mark.parametrize("name", ["x", "mu", "logvar"])
def test_nan_shows_in_its_datum_and_nowhere_else(name: str) -> None:
    problem = small()
    array = getattr(problem, name).copy()
    array[1, 0] = np.nan
    broken = replace(problem, **{name: array})
    moments, gradients = reference.value_and_gradients(broken, Need.everything(broken))
    clean, _ = reference.value_and_gradients(problem, Need.everything(problem))
    assert np.isnan(reference.errors(broken)[1]).all()
    assert np.isnan(moments.mean[1])
    assert moments.mean[0] == clean.mean[0]
    for gradient in (gradients.mu, gradients.logvar, gradients.x):
        assert np.isnan(gradient[1]).any()
        assert np.isfinite(gradient[0]).all()
    assert all(np.isnan(gradient).any() for pair in gradients.layers for gradient in pair)


def test_infinite_data_give_an_infinite_error() -> None:
    problem = small()
    x = problem.x.copy()
    x[0, 2] = np.inf
    moments, _ = reference.value_and_gradients(replace(problem, x=x), Need.everything(problem))
    assert moments.mean[0] == np.inf
    assert np.isfinite(moments.mean[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("batch", "latent", "pixels"), [(0, 2, 3), (2, 0, 3), (2, 2, 0), (0, 0, 0)])
@pytest.mark.parametrize("rows", [None, 1, "batch"])
def test_empty(sampler: str, batch: int, latent: int, pixels: int, rows: int | str | None) -> None:
    problem = Problem(
        np.ones((batch, pixels)),
        np.ones((batch, latent)),
        np.ones((batch, latent)),
        (Layer(np.ones((4, latent)), np.ones(4), Activation("gelu")), Layer(np.ones((pixels, 4)), np.ones(pixels))),
        Draw(2, sampler=sampler),
        None if rows is None else np.ones((batch if rows == "batch" else 1, pixels)),
    )
    moments, gradients = reference.value_and_gradients(problem, Need.everything(problem))
    assert reference.errors(problem).shape == reference.log_ratios(problem).shape == (batch, 2)
    assert reference.kl(problem.mu, problem.logvar).shape == moments.mean.shape == moments.squares.shape == (batch,)
    arrays = named(torch_twin(problem))
    for name, gradient in named(gradients).items():
        assert gradient.shape == tuple(arrays[name].shape)
        assert np.isfinite(gradient).all()


def test_upstream_of_another_shape_is_refused() -> None:
    problem = small()
    with pytest.raises(ValueError, match=r"upstream has shape \(2, 1\): expected \(batch, num_samples\) = \(2, 5\)"):
        reference.gradients(problem, np.ones((2, 1)), Need.everything(problem))


def test_examples() -> None:
    outcome = doctest.testmod(reference)
    assert outcome.attempted
    assert not outcome.failed
