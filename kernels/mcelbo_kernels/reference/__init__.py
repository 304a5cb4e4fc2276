"""The specification: errors of a decoder's samples and their gradients, in float64 NumPy, with no tricks.

Every backend is held to these functions. They compute in float64 and return float64 whatever the dtype of the
problem, and store all B n m pixels. Shapes: batch B, latent d, pixels m, samples n. The cell t(y, x) is (x - y)^2, or
another of `mcelbo_kernels.numerics.cells`, where its formula stands.

    eps[b,i,k] = noise(seed, b, i, k)                                           (B, n, d)
    z[b,i]     = mu[b] + sigma[b] * eps[b,i],      sigma = exp(logvar/2)        (B, n, d)
    y[b,i]     = decode(z[b,i])                                                 (B, n, m)
    T[b,i]     = sum_j w[b,j] t(y[b,i,j], x[b,j])                               (B, n)
    R[b,i]     = log p(z[b,i]) - log q(z[b,i] | x[b])                           (B, n)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mcelbo_kernels.numerics import cells
from mcelbo_kernels.problem import Array, Gradients, Layer, Moments, Need, Problem, check_upstream
from mcelbo_kernels.reference.activations import activate, slope
from mcelbo_kernels.reference.noise import Real, noise

__all__ = ["decode", "errors", "gradients", "kl", "log_ratios", "noise", "preactivations", "value_and_gradients"]


def preactivations(layers: Sequence[Layer], z: Real) -> list[Real]:
    """Return a_l = h_(l-1) W_l^T + b_l of every layer l, where h_0 = z and h_l = f_l(a_l)."""
    a, h = [], z
    for layer in layers:
        a.append(h @ layer.weight.T + layer.bias)
        h = activate(layer.activation, a[-1])
    return a


def decode(layers: Sequence[Layer], z: Real) -> Real:
    """Return y = D(z): affine layers, each followed by its activation.

    Parameters
    ----------
    layers : sequence of Layer
    z : ndarray, shape (..., d), float64

    Returns
    -------
    ndarray, shape (..., m), float64

    Examples
    --------
    >>> decode([Layer(np.array([[2.0], [3.0]]), np.zeros(2))], np.array([[1.0], [10.0]]))
    array([[ 2.,  3.],
           [20., 30.]])
    """
    return activate(layers[-1].activation, preactivations(layers, z)[-1])


def _real(array: Array) -> Real:
    """Return the array in float64."""
    return array.astype(np.float64)


def _in_float64(problem: Problem) -> Problem:
    """Return the same problem with every array in float64."""
    draw = problem.draw
    return Problem(
        x=_real(problem.x),
        mu=_real(problem.mu),
        logvar=_real(problem.logvar),
        layers=tuple(Layer(_real(layer.weight), _real(layer.bias), layer.activation) for layer in problem.layers),
        draw=draw if draw.eps is None else replace(draw, eps=_real(draw.eps)),
        weight=None if problem.weight is None else _real(problem.weight),
        cell=problem.cell,
    )


def _sample(problem: Problem) -> tuple[Real, Real, Real]:
    """Return eps (B, n, d), sigma (B, 1, d) and z (B, n, d)."""
    eps = noise(problem.draw, *problem.mu.shape)
    sigma = np.exp(problem.logvar[:, None, :] / 2)
    return eps, sigma, problem.mu[:, None, :] + sigma * eps


def _pixel_weight(problem: Problem) -> Real:
    """Return w, shape (B or 1, 1, m)."""
    weight = np.ones((1, problem.x.shape[1])) if problem.weight is None else problem.weight
    return weight[:, None, :]


def _cells(problem: Problem, y: Real) -> tuple[Real, Real, Real]:
    """Return t, dt/dy and dt/dx of every decoded pixel y, all (B, n, m)."""
    return cells.BY_NAME[problem.cell].arrays(y, problem.x[:, None, :], np)


@np.errstate(over="ignore", invalid="ignore")
def errors(problem: Problem) -> Real:
    """Return T[b,i] = sum_j w[b,j] t(y[b,i,j], x[b,j]); a pixel of weight 0 is left out whatever it holds.

    Parameters
    ----------
    problem : Problem

    Returns
    -------
    ndarray, shape (B, n), float64

    Examples
    --------
    >>> from mcelbo_kernels.problem import Draw
    >>> x, zero = np.array([[1.0, 2.0]]), np.zeros((1, 1))
    >>> layer = Layer(np.ones((2, 1)), np.zeros(2))
    >>> errors(Problem(x, zero, zero, (layer,), Draw(2, eps=np.array([[[0.0], [1.0]]]))))
    array([[5., 1.]])
    """
    problem = _in_float64(problem)
    w = _pixel_weight(problem)
    _, _, z = _sample(problem)
    t, _, _ = _cells(problem, decode(problem.layers, z))
    total: Real = np.where(w == 0, 0.0, w * t).sum(axis=2)
    return total


@np.errstate(over="ignore", invalid="ignore")
def log_ratios(problem: Problem) -> Real:
    """Return R[b,i] = log p(z[b,i]) - log q(z[b,i] | x[b]), where p is N(0, I) and q is N(mu, sigma^2).

    (z - mu)/sigma is eps and both densities have the constant (2 pi)^(-d/2):  R = sum_k (eps^2 - z^2 + logvar)/2.

    Parameters
    ----------
    problem : Problem

    Returns
    -------
    ndarray, shape (B, n), float64

    Examples
    --------
    >>> from mcelbo_kernels.problem import Draw
    >>> x, one = np.zeros((1, 1)), np.ones((1, 1))
    >>> layer = Layer(one, np.zeros(1))
    >>> log_ratios(Problem(x, one, 0 * one, (layer,), Draw(2, eps=np.array([[[0.0], [1.0]]]))))
    array([[-0.5, -1.5]])
    """
    problem = _in_float64(problem)
    eps, _, z = _sample(problem)
    ratios: Real = (eps**2 - z**2 + problem.logvar[:, None, :]).sum(axis=2) / 2
    return ratios


@np.errstate(over="ignore", invalid="ignore")
def kl(mu: Array, logvar: Array) -> Real:
    """Return KL(N(mu, sigma^2) || N(0, I)) = 1/2 sum_k (mu^2 + sigma^2 - 1 - logvar).

    Parameters
    ----------
    mu, logvar : ndarray, shape (B, d)

    Returns
    -------
    ndarray, shape (B,), float64

    Examples
    --------
    >>> kl(np.array([[1.0, 2.0]]), np.zeros((1, 2)))
    array([2.5])
    """
    mu, logvar = _real(mu), _real(logvar)
    divergence: Real = (mu**2 + np.exp(logvar) - 1 - logvar).sum(axis=1) / 2
    return divergence


def _of_weight(gradient: Real, weight: Array | None) -> Real | None:
    """Return the pixels' gradient (B, m) in the shape of the weight: one that the batch shares gets the batch's sum."""
    if weight is None:
        return None
    return gradient.sum(axis=0, keepdims=True) if len(weight) == 1 else gradient


@np.errstate(over="ignore", invalid="ignore")
def gradients(problem: Problem, upstream: Array, need: Need) -> Gradients:
    """Return the vector-Jacobian product of T: the gradients of sum_bi upstream[b,i] T[b,i].

    Parameters
    ----------
    problem : Problem
    upstream : ndarray, shape (B, n)
    need : Need
        Which gradients to return; the others are None.

    Returns
    -------
    Gradients
        In the shapes of their inputs, float64.

    Raises
    ------
    ValueError
        If `upstream` has another shape.

    Examples
    --------
    >>> from mcelbo_kernels.problem import Draw
    >>> x, zero = np.array([[1.0, 2.0]]), np.zeros((1, 1))
    >>> problem = Problem(x, zero, zero, (Layer(np.ones((2, 1)), np.zeros(2)),), Draw(1, eps=np.full((1, 1, 1), 0.5)))
    >>> gradients(problem, np.ones((1, 1)), Need.everything(problem)).mu
    array([[-4.]])
    """
    check_upstream(upstream.shape, problem)
    problem, g = _in_float64(problem), _real(upstream)[:, :, None]  # g (B, n, 1)
    w = _pixel_weight(problem)
    eps, sigma, z = _sample(problem)
    a = preactivations(problem.layers, z)  # each (B, n, outputs)
    *h, y = z, *(activate(layer.activation, a_l) for layer, a_l in zip(problem.layers, a, strict=True))
    f_prime = [slope(layer.activation, a_l) for layer, a_l in zip(problem.layers, a, strict=True)]

    # T = sum_j w t:    dT/dx = w dt/dx,    dT/dy = w dt/dy,    dT/dw = t    all (B, n, m)
    t, dt_dy, dt_dx = _cells(problem, y)
    dx = np.where(w == 0, 0.0, w * dt_dx * g)
    dw = t * g
    # A pixel of weight 0 is selected out of both factors of da = dy f'(a): 0 * NaN is NaN.
    f_prime[-1] = np.where(w == 0, 0.0, f_prime[-1])
    dh = np.where(w == 0, 0.0, w * dt_dy * g)

    # a_l = h_(l-1) W_l^T + b_l:    dW_l = sum_bi da_l^T h_(l-1),    db_l = sum_bi da_l,    dh_(l-1) = da_l W_l
    layers: list[tuple[Real | None, Real | None]] = []
    for layer, (need_weight, need_bias) in reversed(list(zip(problem.layers, need.layers, strict=True))):
        da, inputs = dh * f_prime.pop(), h.pop()
        d_weight = np.tensordot(da, inputs, axes=((0, 1), (0, 1))) if need_weight else None
        layers.insert(0, (d_weight, da.sum(axis=(0, 1)) if need_bias else None))
        dh = da @ layer.weight

    # z = mu + sigma eps:    dz/dmu = 1,    dz/dlogvar = eps sigma/2
    dz = dh
    return Gradients(
        x=dx.sum(axis=1) if need.x else None,
        weight=_of_weight(dw.sum(axis=1), problem.weight) if need.weight else None,
        mu=dz.sum(axis=1) if need.mu else None,
        logvar=(dz * eps * sigma / 2).sum(axis=1) if need.logvar else None,
        layers=tuple(layers),
    )


@np.errstate(over="ignore", invalid="ignore")
def value_and_gradients(problem: Problem, need: Need) -> tuple[Moments, Gradients]:
    """Return the moments of each datum's errors, and the gradients of sum_b mean_i T[b,i].

    Parameters
    ----------
    problem : Problem
    need : Need
        Which gradients to return; the others are None.

    Returns
    -------
    Moments
        mean[b] = mean_i T[b,i] and squares[b] = sum_i (T[b,i] - mean[b])^2.
    Gradients
        In the shapes of their inputs, float64.

    Examples
    --------
    >>> from mcelbo_kernels.problem import Draw
    >>> x, zero = np.array([[1.0, 2.0]]), np.zeros((1, 1))
    >>> layer = Layer(np.ones((2, 1)), np.zeros(2))
    >>> problem = Problem(x, zero, zero, (layer,), Draw(2, eps=np.array([[[0.0], [1.0]]])))
    >>> moments, gradients = value_and_gradients(problem, Need.everything(problem))
    >>> moments.mean, moments.squares, gradients.mu
    (array([3.]), array([8.]), array([[-4.]]))
    """
    t = errors(problem)
    mean = t.mean(axis=1)
    moments = Moments(mean, ((t - mean[:, None]) ** 2).sum(axis=1))
    return moments, gradients(problem, np.full(t.shape, 1 / problem.draw.num_samples), need)
