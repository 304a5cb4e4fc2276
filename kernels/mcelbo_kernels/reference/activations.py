"""The activations of `reference`, each beside its derivative, in float64 NumPy with torch's semantics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mcelbo_kernels.problem import Activation

Real = NDArray[np.float64]

_SOFTPLUS_THRESHOLD = 20.0
_CUBIC = 0.044715  # of the tanh form of gelu, Hendrycks and Gimpel (2016)
_erfc: Callable[[Real], Real] = np.vectorize(math.erfc, otypes=[np.float64])


def _sigmoid(a: Real) -> Real:
    """1 / (1 + e^-a), written so that no exponential overflows."""
    e = np.exp(-np.abs(a))
    return np.where(a < 0, e, 1.0) / (1.0 + e)


def _softplus(a: Real) -> Real:
    """log(1 + e^a) up to the threshold and the identity above it."""
    return np.where(a > _SOFTPLUS_THRESHOLD, a, np.log1p(np.exp(a)))


def _normal_cdf(a: Real) -> Real:
    """Phi(a); erfc rather than 1 + erf, which cancels in the lower tail."""
    return 0.5 * _erfc(-a / math.sqrt(2.0))


def _normal_density(a: Real) -> Real:
    """phi(a)."""
    return np.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi)


def _gelu_tanh_argument(a: Real) -> Real:
    """sqrt(2/pi) (a + c a^3)."""
    return math.sqrt(2.0 / math.pi) * (a + _CUBIC * a**3)


def _gelu_tanh_slope(a: Real) -> Real:
    """d/da of a (1 + t)/2 with t = tanh(argument): (1 + t)/2 + a (1 - t^2)/2 * argument'."""
    t = np.tanh(_gelu_tanh_argument(a))
    return 0.5 * (1.0 + t) + 0.5 * a * (1.0 - t * t) * math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * _CUBIC * a * a)


class _Pointwise(NamedTuple):
    """h = value(a, p) and dh/da = slope(a, p), p the activation's parameter."""

    value: Callable[[Real, float], Real]
    slope: Callable[[Real, float], Real]


_TABLE = {
    "identity": _Pointwise(
        lambda a, p: a,
        lambda a, p: np.ones_like(a),
    ),
    "relu": _Pointwise(
        lambda a, p: np.maximum(a, 0.0),
        lambda a, p: np.where(a <= 0, 0.0, 1.0),
    ),
    "leaky_relu": _Pointwise(
        lambda a, p: np.where(a > 0, a, p * a),
        lambda a, p: np.where(a > 0, 1.0, p),
    ),
    "tanh": _Pointwise(
        lambda a, p: np.tanh(a),
        lambda a, p: 1.0 - np.tanh(a) ** 2,
    ),
    "sigmoid": _Pointwise(
        lambda a, p: _sigmoid(a),
        lambda a, p: _sigmoid(a) * _sigmoid(-a),
    ),
    "softplus": _Pointwise(
        lambda a, p: _softplus(a),
        lambda a, p: np.where(a > _SOFTPLUS_THRESHOLD, 1.0, _sigmoid(a)),
    ),
    "elu": _Pointwise(
        lambda a, p: np.where(a <= 0, p * np.expm1(a), a),
        lambda a, p: np.where(a <= 0, p * np.exp(a), 1.0),
    ),
    "gelu": _Pointwise(
        lambda a, p: a * _normal_cdf(a),
        lambda a, p: _normal_cdf(a) + a * _normal_density(a),
    ),
    "gelu_tanh": _Pointwise(
        lambda a, p: 0.5 * a * (1.0 + np.tanh(_gelu_tanh_argument(a))),
        lambda a, p: _gelu_tanh_slope(a),
    ),
    "silu": _Pointwise(
        lambda a, p: a * _sigmoid(a),
        lambda a, p: _sigmoid(a) * (1.0 + a * _sigmoid(-a)),
    ),
}


def activate(activation: Activation, a: Real) -> Real:
    """Return h = f(a), elementwise.

    Parameters
    ----------
    activation : Activation
    a : ndarray, float64
        Pre-activations, any shape.

    Returns
    -------
    ndarray, float64
        In the shape of `a`.

    Raises
    ------
    KeyError
        If the activation is unknown; a `Problem` never holds such a one.

    Examples
    --------
    >>> activate(Activation("leaky_relu", 0.1), np.array([-1.0, 2.0]))
    array([-0.1,  2. ])
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _TABLE[activation.name].value(a, activation.parameter)


def slope(activation: Activation, a: Real) -> Real:
    """Return dh/da = f'(a), elementwise, with torch's choice where f has a kink.

    The kinks: relu'(0) = 0, leaky_relu'(0) = its parameter, elu'(0) = its parameter; softplus is the identity above 20.

    Parameters
    ----------
    activation : Activation
    a : ndarray, float64
        Pre-activations, any shape.

    Returns
    -------
    ndarray, float64
        In the shape of `a`.

    Raises
    ------
    KeyError
        If the activation is unknown; a `Problem` never holds such a one.

    Examples
    --------
    >>> slope(Activation("relu"), np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 1.])
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _TABLE[activation.name].slope(a, activation.parameter)
