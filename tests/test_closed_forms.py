"""The reference against expectations and variances known in closed form.

Every statistical test compares an average of draws with its expectation, within 5 standard errors of the KNOWN
variance: a false alarm has probability 6e-7 a comparison (in the normal limit, n being thousands), and seeds are
fixed. There are some 400 comparisons, so the file as a whole would raise one for 3 seeds in 10,000.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from scipy import stats

from mcelbo_kernels import reference
from mcelbo_kernels.problem import ACTIVATIONS, SAMPLERS, Activation, Array, Draw, Layer, Need, Problem
from tests.strategies import PARAMETERS, problems
from tests.torch_twin import named

SEED = 314
B, D, M = 3, 2, 4
phi, Phi = stats.norm.pdf, stats.norm.cdf


def linear_problem(draw: Draw, *, data: int = B, far: float = 1.0) -> Problem:
    """Return a linear decoder with identity output; `far` scales the residual at the posterior's mean."""
    rng = np.random.default_rng(SEED)
    weight, bias = rng.normal(size=(M, D)), rng.normal(size=M)
    mu, logvar = rng.normal(size=(data, D)), rng.normal(size=(data, D))
    x = mu @ weight.T + bias + far * rng.normal(size=(data, M))
    return Problem(x, mu, logvar, (Layer(weight, bias),), draw)


class Quadratic(NamedTuple):
    """f(eps) = constant + linear . eps + eps^T square eps for each datum (leading axis), summed over the data."""

    constant: Array
    linear: Array
    square: Array

    def expectation(self) -> float:
        return float((self.constant + np.trace(self.square, axis1=1, axis2=2)).sum())

    def variance(self, sampler: str) -> float:
        """Return n times the variance of a mean of n: antithetic pairs share the square and cancel the linear part.

        Sobol points are held to that of independent samples, of which they have a small part.
        """
        symmetric = (self.square + self.square.swapaxes(1, 2)) / 2
        even, odd = 2 * (symmetric**2).sum(), (self.linear**2).sum()
        return float(2 * even if sampler == "antithetic" else even + odd)


def of_one_datum(constant: float, linear: Array, square: Array) -> Quadratic:
    return Quadratic(np.array([constant]), linear[None], square[None])


def quadratics(problem: Problem) -> Iterator[tuple[str, tuple[int, ...], Quadratic]]:
    """Yield (name, index, form): T[b] of a linear decoder as "errors", and every gradient of sum_b T[b].

    With V = W diag(sigma):  z = mu + sigma eps,  x - y = r - V eps,  dT/dz = -2 W^T (r - V eps).
    """
    (layer,) = problem.layers
    w, mu, sigma, unit = layer.weight, problem.mu, np.exp(problem.logvar / 2), np.eye(D)
    r, v = problem.x - mu @ w.T - layer.bias, w * sigma[:, None, :]  # (B, m), (B, m, d)
    none = np.zeros((D, D))
    for b in range(B):
        yield "errors", (b,), of_one_datum(r[b] @ r[b], -2 * r[b] @ v[b], v[b].T @ v[b])
        for k in range(D):
            at_mean, by_eps, half = -2 * w[:, k] @ r[b], 2 * w[:, k] @ v[b], sigma[b, k] / 2
            yield "mu", (b, k), of_one_datum(at_mean, by_eps, none)
            yield "logvar", (b, k), of_one_datum(0.0, at_mean * half * unit[k], half * np.outer(unit[k], by_eps))
        for j in range(M):
            yield "x", (b, j), of_one_datum(2 * r[b, j], -2 * v[b, j], none)
    for j in range(M):
        yield "bias of layer 0", (j,), Quadratic(-2 * r[:, j], 2 * v[:, j], np.zeros((B, D, D)))
        for k in range(D):  # -2 (r_j - v_j . eps) (mu_k + sigma_k eps_k)
            linear = -2 * np.outer(r[:, j] * sigma[:, k], unit[k]) + 2 * mu[:, [k]] * v[:, j]
            square = 2 * sigma[:, k, None, None] * unit[k][:, None] * v[:, j, None, :]
            yield "weight of layer 0", (j, k), Quadratic(-2 * r[:, j] * mu[:, k], linear, square)


Rule = tuple[Array, Array]


def gauss_hermite(points: int) -> Rule:
    """Return nodes and weights for E f(eps), eps ~ N(0, 1): exact for polynomials of degree 2 points - 1."""
    node, weight = np.polynomial.hermite_e.hermegauss(points)
    return node, weight / math.sqrt(2 * math.pi)


def trapezoid(points: int) -> Rule:
    """Return the same by equal steps: an error of order step^2 at a kink, which spoils Gauss and Hermite's rule."""
    node = np.linspace(-8.0, 8.0, points)
    return node, phi(node) * (node[1] - node[0])


def grid(rule: Rule, latent: int, data: int) -> tuple[Draw, Array]:
    """Return the rule's nodes in all latents as injected noise, the same for each datum, and their weights (B, n)."""
    nodes = np.array(list(product(rule[0], repeat=latent)))
    weights = np.array(list(product(rule[1], repeat=latent))).prod(axis=1)
    eps = np.broadcast_to(nodes, (data, *nodes.shape))
    return Draw(len(nodes), eps=eps), np.broadcast_to(weights, (data, len(nodes)))


def test_linear_decoder_by_quadrature() -> None:
    """Three nodes an axis integrate any polynomial of degree 5: no statistical error."""
    draw, weights = grid(gauss_hermite(3), D, B)
    problem = linear_problem(draw)
    found = named(reference.gradients(problem, weights, Need.everything(problem)))
    found["errors"] = (weights * reference.errors(problem)).sum(axis=1)
    for name, index, form in quadratics(problem):
        assert found[name][index] == pytest.approx(form.expectation(), rel=1e-12, abs=1e-12)

    # r = x - W mu - b:  ||r||^2 + tr A;  by mu -2 W^T r, by sigma_k 2 sigma_k ||w_k||^2, by W -2 r mu^T + 2 W Sigma
    (layer,), variance = problem.layers, np.exp(problem.logvar)
    r = problem.x - problem.mu @ layer.weight.T - layer.bias
    norms = (layer.weight**2).sum(axis=0)
    np.testing.assert_allclose(found["errors"], (r**2).sum(axis=1) + variance @ norms, rtol=1e-12)
    np.testing.assert_allclose(found["mu"], -2 * r @ layer.weight, rtol=1e-12)
    np.testing.assert_allclose(found["logvar"], variance * norms, rtol=1e-12)  # dsigma/dlogvar is sigma/2
    by_weight = -2 * r.T @ problem.mu + 2 * layer.weight * variance.sum(axis=0)
    np.testing.assert_allclose(found["weight of layer 0"], by_weight, rtol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_linear_decoder_by_sampling(sampler: str) -> None:
    n = 4000
    problem = linear_problem(Draw(n, seed=SEED, sampler=sampler))
    moments, gradients = reference.value_and_gradients(problem, Need.everything(problem))
    found = {"errors": moments.mean, **named(gradients)}
    for name, index, form in quadratics(problem):
        # without a square an antithetic estimate is exact, up to the rounding of sums of n terms of order ten
        error = math.sqrt(form.variance(sampler) / n)
        assert abs(found[name][index] - form.expectation()) < 5 * error + 1e-12, (name, index)


@pytest.mark.parametrize("far", [0.0, 1.0])
@pytest.mark.parametrize("sampler", ["iid", "antithetic"])
def test_variance_of_the_estimate(sampler: str, far: float) -> None:
    """Of 4,000 estimates: were they normal, their sample variance would be chi-square, false alarm 2e-6.

    A mean of 256 has an excess kurtosis of at most 12 / 128, which widens the sample variance by 2.5%: 4e-6.
    """
    data, n = 4000, 256
    one = linear_problem(Draw(n, seed=SEED, sampler=sampler), data=1, far=far)
    x, mu, logvar = (np.repeat(array, data, axis=0) for array in (one.x, one.mu, one.logvar))
    t = reference.errors(replace(one, x=x, mu=mu, logvar=logvar))

    (layer,), sigma = one.layers, np.exp(one.logvar[0] / 2)
    r = one.x[0] - layer.weight @ one.mu[0] - layer.bias
    a = (layer.weight * sigma).T @ (layer.weight * sigma)  # A = Sigma^(1/2) W^T W Sigma^(1/2)
    linear = 4 * ((sigma * (layer.weight.T @ r)) ** 2).sum()
    known = (linear + 2 * np.trace(a @ a) if sampler == "iid" else 4 * np.trace(a @ a)) / n

    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], data - 1) / (data - 1)
    assert low < t.mean(axis=1).var(ddof=1) / known < high


@given(
    problems(names=["identity"], cells=["squared_error"], max_layers=1, samplers=["antithetic"], dtypes=[np.float64])
)
def test_antithetic_gradient_of_a_linear_decoder_is_exact(problem: Problem) -> None:
    """mean_i dT/dmu = -2 W^T w r for every even n: what is odd in eps cancels in each pair."""
    (layer,), w = problem.layers, 1.0 if problem.weight is None else problem.weight
    expected = -2 * (w * (problem.x - problem.mu @ layer.weight.T - layer.bias)) @ layer.weight
    _, gradients = reference.value_and_gradients(problem, Need.everything(problem))
    np.testing.assert_allclose(gradients.mu, expected, rtol=0, atol=1e-12 * max(1.0, np.abs(expected).max()))


def positive_moments(a: Array, t: Array) -> list[Array]:
    """Return E[u^k; u > 0] for k = 0 ... 4 and u ~ N(a, t^2)."""
    moments = [Phi(a / t), a * Phi(a / t) + t * phi(a / t)]
    for k in range(2, 5):
        moments.append(a * moments[k - 1] + (k - 1) * t**2 * moments[k - 2])
    return moments


def negative_moments(activation: Activation, a: Array, t: Array) -> list[Array]:
    """Return E[f(u)^k; u < 0] for k = 0 ... 4, f one of the activations that are the identity above zero."""
    p = activation.parameter
    if activation.name == "elu":  # (p (e^u - 1))^k, where E[e^(ju); u < 0] = e^(ja + j^2 t^2/2) Phi(-(a + j t^2)/t)
        powers = [np.exp(j * a + (j * t) ** 2 / 2) * Phi(-(a + j * t**2) / t) for j in range(5)]
        return [p**k * sum((-1) ** (k - j) * math.comb(k, j) * powers[j] for j in range(k + 1)) for k in range(5)]
    slope = p if activation.name == "leaky_relu" else 0.0
    return [(-slope) ** k * moment for k, moment in enumerate(positive_moments(-a, t))]


RECTIFIERS = [Activation("relu"), *(Activation(name, p) for name in PARAMETERS for p in PARAMETERS[name])]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("activation", RECTIFIERS)
def test_moments_of_rectifiers(activation: Activation, sampler: str) -> None:
    data, latent, n = 6, 3, 4000
    rng = np.random.default_rng(SEED)
    weight, bias = rng.normal(size=(1, latent)), rng.normal(size=1)
    x, mu, logvar = (rng.normal(size=(data, size)) for size in (1, latent, latent))
    problem = Problem(x, mu, logvar, (Layer(weight, bias, activation),), Draw(n, seed=SEED, sampler=sampler))

    # u = W z + b ~ N(a, t^2), y = f(u):  moments of y, of x - y and so of T = (x - y)^2
    a, t = mu @ weight[0] + bias, np.sqrt(np.exp(logvar) @ weight[0] ** 2)
    _, y1, y2, y3, y4 = map(np.add, positive_moments(a, t), negative_moments(activation, a, t))
    x = x[:, 0]
    expected = x**2 - 2 * x * y1 + y2
    variance = x**4 - 4 * x**3 * y1 + 6 * x**2 * y2 - 4 * x * y3 + y4 - expected**2

    # the samples of an antithetic pair may be fully correlated: the variance is at most that of n/2 iid samples
    independent = n if sampler == "iid" else n / 2
    moments, gradients = reference.value_and_gradients(problem, Need.everything(problem))
    assert (np.abs(moments.mean - expected) < 5 * np.sqrt(variance / independent)).all()
    assert (np.abs(gradients.x[:, 0] - 2 * (x - y1)) < 5 * np.sqrt(4 * (y2 - y1**2) / independent)).all()


def test_mean_of_gelu() -> None:
    """E[u Phi(u)] = a Phi(a/q) + t^2/q phi(a/q) with q^2 = 1 + t^2, seen in dT/dx = 2 (x - y) by quadrature."""
    a, logvar = np.array([[-1.0], [0.3], [2.0]]), np.array([[0.0], [0.7], [-1.0]])
    draw, weights = grid(gauss_hermite(80), 1, 3)
    layer = Layer(np.ones((1, 1)), np.zeros(1), Activation("gelu"))
    problem = Problem(np.zeros((3, 1)), a, logvar, (layer,), draw)
    t2, q = np.exp(logvar), np.sqrt(1 + np.exp(logvar))
    expected = -2 * (a * Phi(a / q) + t2 / q * phi(a / q))
    found = reference.gradients(problem, weights, Need.everything(problem)).x
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("hidden", [*ACTIVATIONS, None])
@pytest.mark.parametrize("last", ["identity", "sigmoid", "relu", "gelu"])
def test_any_stack_by_quadrature(last: str, hidden: str | None, latent: int) -> None:
    data, pixels, n = 2, 3, 2000
    rng = np.random.default_rng(SEED)
    widths, names = ([latent, pixels], [last]) if hidden is None else ([latent, 4, pixels], [hidden, last])
    layers = tuple(
        Layer(rng.normal(size=(o, i)), rng.normal(size=o), Activation(name, PARAMETERS.get(name, (0.0,))[0]))
        for (i, o), name in zip(pairwise(widths), names, strict=True)
    )
    x, mu, logvar = (rng.normal(size=(data, size)) for size in (pixels, latent, latent))

    def expectation(rule: Rule, power: int = 1) -> Array:
        draw, weights = grid(rule, latent, data)
        return (weights * reference.errors(Problem(x, mu, logvar, layers, draw)) ** power).sum(axis=1)

    kinked = {"relu", "leaky_relu"} & set(names)
    coarse, fine = (trapezoid(150), trapezoid(200)) if kinked else (gauss_hermite(50), gauss_hermite(60))
    expected, variance = expectation(fine), expectation(fine, 2) - expectation(fine) ** 2
    error, quadrature_error = np.sqrt(variance / n), np.abs(expected - expectation(coarse))
    assert (quadrature_error < error / 10).all()
    t = reference.errors(Problem(x, mu, logvar, layers, Draw(n, seed=SEED)))
    assert (np.abs(t.mean(axis=1) - expected) < 5 * error + quadrature_error).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_log_ratios_average_to_minus_the_divergence(sampler: str) -> None:
    """R = sum_k (eps^2 - (mu + sigma eps)^2 + logvar)/2."""
    n = 4000
    problem = linear_problem(Draw(n, seed=SEED, sampler=sampler))
    found, divergence = reference.log_ratios(problem).mean(axis=1), reference.kl(problem.mu, problem.logvar)
    for b, (mu, logvar) in enumerate(zip(problem.mu, problem.logvar, strict=True)):
        sigma = np.exp(logvar / 2)
        form = of_one_datum((logvar - mu**2).sum() / 2, -mu * sigma, np.diag(1 - sigma**2) / 2)
        assert form.expectation() == pytest.approx(-divergence[b], rel=1e-12)
        assert abs(found[b] - form.expectation()) < 5 * math.sqrt(form.variance(sampler) / n)
