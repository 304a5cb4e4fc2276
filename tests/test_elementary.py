"""The error of every elementary function over its range, and what it makes of NaN and infinities."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from mcelbo_kernels.numerics import elementary
from tests.vectors import over_scalars, over_vectors

Array = NDArray[Any]


class Case(NamedTuple):
    """A function, its exact twin in long doubles, a range, and the largest relative error there in epsilons."""

    name: str
    exact: Any
    single: tuple[float, float]
    double: tuple[float, float]
    bound: float


def density(x: Array) -> Array:
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def normal_cdf(x: Array) -> Array:
    return special.ndtr(x.astype(np.float64))


CASES = [
    Case("exp", np.exp, (-87.3, 88.3), (-708.3, 709.4), 0.75),
    Case("tanh", np.tanh, (-10.0, 10.0), (-20.0, 20.0), 2.5),
    Case("tanh", np.tanh, (-0.7, 0.7), (-0.7, 0.7), 2.5),
    Case("tanh", np.tanh, (-1e-3, 1e-3), (-1e-3, 1e-3), 0.75),
    Case("expm1", np.expm1, (-30.0, 0.0), (-40.0, 0.0), 2.5),
    Case("expm1", np.expm1, (-1e-3, 0.0), (-1e-3, 0.0), 2.0),
    Case("log1p_of_fraction", np.log1p, (0.0, 1.0), (0.0, 1.0), 2.5),
    Case("sigmoid", logistic, (-87.0, 30.0), (-700.0, 40.0), 4.0),
    Case("normal_cdf", normal_cdf, (-1.0, 9.0), (-1.0, 9.0), 4.0),
    # the rounding of x^2 is magnified x^2/2 times in e^(-x^2/2)
    Case("normal_cdf", normal_cdf, (-5.0, -1.0), (-8.0, -1.0), 50.0),
    Case("normal_density", density, (-5.0, 5.0), (-8.0, 8.0), 20.0),
]


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}{case.single}")
def test_relative_error(case: Case, real: Any) -> None:
    low, high = case.single if real == np.float32 else case.double
    x = np.random.default_rng(1).uniform(low, high, 100_000).astype(real)
    function = getattr(elementary, case.name)
    truth = case.exact(x.astype(np.longdouble))
    error = np.abs((over_vectors(function, x) - truth) / truth).max()
    assert error <= case.bound * np.finfo(real).eps


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("name", sorted({case.name for case in CASES}))
def test_scalars_and_vectors_agree_bit_for_bit(name: str, real: Any) -> None:
    function = getattr(elementary, name)
    x = np.random.default_rng(2).uniform(0.0, 1.0, 1000).astype(real)
    np.testing.assert_array_equal(over_vectors(function, x), over_scalars(function, x))


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "at_infinity", "at_minus_infinity"),
    [
        ("exp", np.inf, 0.0),
        ("tanh", 1.0, -1.0),
        ("sigmoid", 1.0, 0.0),
        ("normal_cdf", 1.0, 0.0),
        ("normal_density", 0.0, 0.0),
    ],
)
def test_nan_and_infinities(name: str, at_infinity: float, at_minus_infinity: float, real: Any) -> None:
    largest = np.finfo(real).max
    x = np.array([np.nan, np.inf, largest, -np.inf, -largest], real)
    expected = [np.nan, at_infinity, at_infinity, at_minus_infinity, at_minus_infinity]
    np.testing.assert_array_equal(over_vectors(getattr(elementary, name), x), expected)
