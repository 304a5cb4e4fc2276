"""Floating-point instructions on arrays of lanes.

Arithmetic is rounded once, as the instruction says. What PTX leaves to the device, `.approx` and `.full`, is rounded
correctly here from double precision; only its documented special cases are the device's. NaNs have any payload.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from tests.ptx.integers import COMPARISONS, Array, Function

_SMALLEST_NORMAL = {np.dtype(name): np.finfo(name).tiny for name in ("f2", "f4", "f8")}
_SPLITTER = 2.0**27 + 1
_UPPER_HALF = np.uint64(0xFFFFFFFF00000000)


def flushed(x: Array) -> Array:
    """Return zeros of the same sign in place of subnormal numbers."""
    return x * (np.abs(x) >= _SMALLEST_NORMAL[x.dtype])


def saturated(x: Array) -> Array:
    """Clamp to [0, 1], NaN to zero."""
    return np.where(x > 0, np.minimum(x, x.dtype.type(1)), x.dtype.type(0))


def rounded(x: Array, dtype: str, mode: str = "rn") -> Array:
    """Round float64 to a narrower format: rn, rz, rm or rp, to nearest, towards zero, down or up."""
    nearest = x.astype(dtype)
    if mode == "rn":
        return nearest
    if mode == "rp":
        return -rounded(-x, dtype, "rm")
    too_far = nearest > x if mode == "rm" else np.abs(nearest) > np.abs(x)
    towards = nearest.dtype.type(-np.inf if mode == "rm" else 0)
    return np.where(too_far, np.nextafter(nearest, towards), nearest)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a sum and its rounding error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a product and its rounding error."""
    product = a * b
    (a1, a0), (b1, b0) = ((upper := v * _SPLITTER - (v * _SPLITTER - v), v - upper) for v in (a, b))
    return product, ((a1 * b1 - product) + a1 * b0 + a0 * b1) + a0 * b0


def sum_to_odd(a: Array, b: Array) -> Array:
    """Return the float64 next to an inexact sum that is odd, so that rounding it again is harmless."""
    total, error = two_sum(a, b)
    even = (total.view("i8") & 1) == 0
    step = np.where((error > 0) == (total > 0), 1, -1)
    inexact = np.isfinite(total) & (error != 0)
    return (total.view("i8") + np.where(inexact & even, step, 0)).view("f8")


def fused(mode: str = "rn") -> Function:
    """Return a * b + c of float32, rounded once."""

    def multiply_add(a: Array, b: Array, c: Array) -> Array:
        product, c = np.multiply(a, b, dtype="f8"), c.astype("f8")
        total = product + c
        if mode == "rn" and not _may_round_twice(total).any():
            return total.astype("f4")
        result = rounded(sum_to_odd(product, c), "f4", mode)
        if mode != "rm":
            return result
        negative_zero = (total == 0) & (np.signbit(product) | np.signbit(c))
        return np.where(negative_zero, np.float32(-0.0), result)

    return multiply_add


def directed(mode: str) -> dict[str, tuple[Function, str]]:
    """Return the instructions of float32 that can be rounded towards zero, down or up."""
    multiply_add, one = fused(mode), np.ones(1, np.float32)
    return {
        f"add.{mode}": (lambda a, b: multiply_add(a, one, b), "tt>t"),
        f"sub.{mode}": (lambda a, b: multiply_add(a, one, -b), "tt>t"),
        f"mul.{mode}": (lambda a, b: rounded(np.multiply(a, b, dtype="f8"), "f4", mode), "tt>t"),
        f"fma.{mode}": (multiply_add, "ttt>t"),
        f"mad.{mode}": (multiply_add, "ttt>t"),
    }


def _may_round_twice(total: Array) -> Array:
    """Whether float64 is in the middle between two of float32, or so small that fewer bits than usual are kept."""
    size = np.abs(total)
    return ((total.view("i8") & 0x1FFFFFFF) == 0x10000000) | ((size < 2.0**-125) & (size > 0))


def fused_double(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c of float64, rounded once: in Boldo and Melquiond's way, at the extremes by fractions."""
    a, b, c = np.broadcast_arrays(a, b, c)
    product, low = two_product(a, b)
    size = np.abs(product)
    within = (size > 2.0**-900) & (size < 2.0**1000) & (np.maximum(np.abs(a), np.abs(b)) < 2.0**990)
    within &= np.abs(c) < 2.0**1000
    high, rest = two_sum(c, low)
    high, low = two_sum(product, high)
    result = high + sum_to_odd(rest, low)
    if within.all():
        return result
    finite = np.isfinite(a) & np.isfinite(b)
    result = np.where(within, result, np.where(finite & ~np.isfinite(c), c, product + c))
    for lane in np.flatnonzero(~within & finite & np.isfinite(c) & (a != 0) & (b != 0)):
        result[lane] = _exactly(float(a[lane]), float(b[lane]), float(c[lane]))
    return result


def _exactly(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        return float(exact) if exact else a * b + c
    except OverflowError:
        return np.inf if exact > 0 else -np.inf


def smallest(a: Array, b: Array) -> Array:
    """Return the smaller number, of two zeros the negative one, and what is beside a NaN."""
    return np.where(a == b, np.where(np.signbit(b), b, a), np.fmin(a, b))


def largest(a: Array, b: Array) -> Array:
    """Return the larger number, of two zeros the positive one, and what is beside a NaN."""
    return np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b))


def or_nan(function: Function) -> Function:
    """Return the function with NaN for what has a NaN."""
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), a + b, function(a, b))


def divide_approximately(a: Array, b: Array) -> Array:
    """Return quotients; the device's are a product with the divisor's reciprocal, which it flushes to zero."""
    return np.where((np.abs(b) > 2.0**126) & np.isfinite(b), a * np.copysign(np.float32(0), b), a / b)


def reciprocal(x: Array) -> Array:
    """Return 1 / x."""
    return x.dtype.type(1) / x


def in_double(function: Function) -> Function:
    """Return a function of float32 that computes in float64."""
    return lambda x: function(x.astype("f8")).astype("f4")


def coarsely(function: Function) -> Function:
    """Return a function of float64 that sees and returns upper halves alone, as `.approx.ftz.f64` do."""

    def upper(x: Array) -> Array:
        return (x.view("u8") & _UPPER_HALF).view("f8")

    return lambda x: upper(function(upper(x)))


def reciprocal_root(x: Array) -> Array:
    """Return 1 / sqrt(x)."""
    return reciprocal(np.sqrt(x))


def _is_normal(x: Array) -> Array:
    return np.isfinite(x) & (np.abs(x) >= _SMALLEST_NORMAL[x.dtype])


def _is_subnormal(x: Array) -> Array:
    return (np.abs(x) < _SMALLEST_NORMAL[x.dtype]) & (x != 0)


def _unordered(function: Function) -> Function:
    return lambda a, b: function(a, b) | np.isnan(a) | np.isnan(b)


def _numbers(a: Array, b: Array) -> Array:
    return ~(np.isnan(a) | np.isnan(b))


_ORDERED = {name: COMPARISONS[name] for name in ("eq", "lt", "le", "gt", "ge")}
FLOAT_COMPARISONS: dict[str, Function] = {
    **_ORDERED,
    **{f"{name}u": _unordered(function) for name, function in _ORDERED.items()},
    "ne": lambda a, b: (a != b) & _numbers(a, b),
    "neu": np.not_equal,
    "num": _numbers,
    "nan": lambda a, b: ~_numbers(a, b),
}

# Keys without a rounding mode round to nearest; signatures as for integers.
_OF_BOTH: dict[str, tuple[Function, str]] = {
    "add": (np.add, "tt>t"),
    "sub": (np.subtract, "tt>t"),
    "mul": (np.multiply, "tt>t"),
    "div": (np.divide, "tt>t"),
    "rcp": (reciprocal, "t>t"),
    "sqrt": (np.sqrt, "t>t"),
    "abs": (np.abs, "t>t"),
    "neg": (np.negative, "t>t"),
    "min": (smallest, "tt>t"),
    "max": (largest, "tt>t"),
    "copysign": (lambda a, b: np.copysign(b, a), "tt>t"),
    "selp": (lambda a, b, p: np.where(p, a, b), "ttp>t"),
    "testp.finite": (np.isfinite, "t>p"),
    "testp.infinite": (np.isinf, "t>p"),
    "testp.number": (lambda x: ~np.isnan(x), "t>p"),
    "testp.notanumber": (np.isnan, "t>p"),
    "testp.normal": (_is_normal, "t>p"),
    "testp.subnormal": (_is_subnormal, "t>p"),
}
TABLE: dict[str, dict[str, tuple[Function, str]]] = {
    "f32": {
        **_OF_BOTH,
        **directed("rz"),
        **directed("rm"),
        **directed("rp"),
        "fma": (fused(), "ttt>t"),
        "mad": (fused(), "ttt>t"),
        "min.NaN": (or_nan(smallest), "tt>t"),
        "max.NaN": (or_nan(largest), "tt>t"),
        "div.full": (np.divide, "tt>t"),
        "div.approx": (divide_approximately, "tt>t"),
        "rcp.approx": (reciprocal, "t>t"),
        "sqrt.approx": (np.sqrt, "t>t"),
        "rsqrt.approx": (in_double(reciprocal_root), "t>t"),
        "ex2.approx": (in_double(np.exp2), "t>t"),
        "lg2.approx": (in_double(np.log2), "t>t"),
        "sin.approx": (in_double(np.sin), "t>t"),
        "cos.approx": (in_double(np.cos), "t>t"),
        "tanh.approx": (in_double(np.tanh), "t>t"),
    },
    "f64": {
        **_OF_BOTH,
        "fma": (fused_double, "ttt>t"),
        "mad": (fused_double, "ttt>t"),
        "rcp.approx": (coarsely(reciprocal), "t>t"),
        "rsqrt.approx": (coarsely(reciprocal_root), "t>t"),
    },
}
