"""Activations with their derivatives: (f(a), f'(a)) of a pre-activation a, in torch's conventions at the kinks."""

from __future__ import annotations

from mcelbo_kernels._compile import inline
from mcelbo_kernels.numerics.elementary import (
    expm1,
    normal_cdf,
    normal_density,
    sigmoid,
    softplus_parts,
    tanh,
)
from mcelbo_kernels.numerics.lanes import constant, fma, less, select

SOFTPLUS_THRESHOLD = 20.0  # above it torch returns the input itself
SQRT_2_OVER_PI = 0.7978845608028654
GELU_CUBIC = 0.044715


@inline
def identity(a, parameter):
    """Return f(a) = a."""
    return a, constant(a, 1.0)


@inline
def relu(a, parameter):
    """Return f(a) = max(a, 0)."""
    # the comparison is with what is kept out, so that NaN is kept in
    off = less(a, 0.0)
    slope = select(less(constant(a, 0.0), a), constant(a, 1.0), constant(a, 0.0))
    return select(off, constant(a, 0.0), a), slope


@inline
def leaky_relu(a, parameter):
    """Return f(a) = a above zero, parameter a below."""
    below = constant(a, parameter)
    above = less(constant(a, 0.0), a)
    return select(above, a, a * below), select(above, constant(a, 1.0), below)


@inline
def hyperbolic_tangent(a, parameter):
    """Return f(a) = tanh(a), f' = 1 - f^2."""
    y = tanh(a)
    return y, fma(-y, y, 1.0)


@inline
def logistic(a, parameter):
    """Return f(a) = 1/(1 + e^-a), f' = f (1 - f)."""
    y = sigmoid(a)
    return y, fma(-y, y, y)


@inline
def softplus(a, parameter):
    """Return f(a) = ln(1 + e^a), f' = 1/(1 + e^-a)."""
    positive, rest, slope = softplus_parts(a)
    linear = less(constant(a, SOFTPLUS_THRESHOLD), a)
    return select(linear, a, positive + rest), select(linear, constant(a, 1.0), slope)


@inline
def elu(a, parameter):
    """Return f(a) = a above zero, parameter (e^a - 1) below."""
    size = constant(a, parameter)
    above = less(constant(a, 0.0), a)
    below = size * expm1(select(above, constant(a, 0.0), a))
    return select(above, a, below), select(above, constant(a, 1.0), below + size)


@inline
def gelu(a, parameter):
    """Return f(a) = a Phi(a), f' = Phi(a) + a phi(a)."""
    cdf = normal_cdf(a)
    return a * cdf, fma(a, normal_density(a), cdf)


@inline
def gelu_tanh(a, parameter):
    """Return f(a) = a (1 + tanh u)/2 with u = sqrt(2/pi) (a + c a^3)."""
    square = a * a
    scale = constant(a, SQRT_2_OVER_PI)
    t = tanh(scale * a * fma(square, GELU_CUBIC, 1.0))
    half = constant(a, 0.5)
    cdf = fma(half, t, 0.5)
    du = scale * fma(square, 3.0 * GELU_CUBIC, 1.0)
    return a * cdf, fma(half * a * fma(-t, t, 1.0), du, cdf)


@inline
def silu(a, parameter):
    """Return f(a) = a s with s = 1/(1 + e^-a), f' = s (1 + a (1 - s))."""
    s = sigmoid(a)
    return a * s, fma(s, a * (constant(a, 1.0) - s), s)


BY_NAME = {
    "identity": identity,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "tanh": hyperbolic_tangent,
    "sigmoid": logistic,
    "softplus": softplus,
    "elu": elu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
}

# Where f(a) is exactly 0, if not at 0.
ZERO_AT = {"sigmoid": -1000.0, "softplus": -1000.0}
