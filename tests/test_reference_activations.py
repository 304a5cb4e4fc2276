"""Activations and derivatives against torch's own, kinks and extremes included."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
import torch

from mcelbo_kernels.problem import ACTIVATIONS, Activation
from mcelbo_kernels.reference.activations import Real, activate, slope
from tests.strategies import PARAMETERS
from tests.torch_twin import torch_activation

EVERY = [Activation(name) for name in ACTIVATIONS if name not in PARAMETERS]
EVERY += [
    Activation("leaky_relu", 0.01),
    Activation("leaky_relu", 0.25),
    Activation("elu", 1.0),
    Activation("elu", 0.5),
]
POINTS = np.concatenate(
    [
        np.linspace(-45.0, 45.0, 3601),  # holds 0 and 20, where pieces join
        [np.nextafter(20.0, 0.0), np.nextafter(20.0, 99.0), 5e-324, -5e-324, -0.0, 1e-9, -1e-9, 800.0, -800.0],
    ]
)


def by_torch(activation: Activation, a: Real) -> tuple[Real, Real]:
    tensor = torch.tensor(a, requires_grad=True)
    h = torch_activation(activation, tensor)
    (derivative,) = torch.autograd.grad(h.sum(), tensor)
    return h.detach().numpy(), derivative.numpy()


@pytest.mark.parametrize("activation", EVERY)
def test_value_and_slope_are_those_of_torch(activation: Activation) -> None:
    value, derivative = by_torch(activation, POINTS)
    # torch's 1 + erf and s (1 - s) cancel in the tails: there its error is absolute, an ulp of 1 times |a|
    np.testing.assert_allclose(activate(activation, POINTS), value, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(slope(activation, POINTS), derivative, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (Activation("relu"), 0.0),
        (Activation("leaky_relu", 0.25), 0.25),
        (Activation("elu", 0.5), 0.5),
    ],
)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_slope_at_a_kink(activation: Activation, expected: float, zero: float) -> None:
    at = np.array([zero])
    assert slope(activation, at) == expected == by_torch(activation, at)[1]


def test_softplus_is_the_identity_above_20_only() -> None:
    softplus = Activation("softplus")
    above = np.nextafter(20.0, 99.0)
    value, derivative = activate(softplus, np.array([20.0, above])), slope(softplus, np.array([20.0, above]))
    assert value[1] == above
    assert derivative[1] == 1.0
    assert value[0] > 20.0
    assert derivative[0] < 1.0


@pytest.mark.parametrize("activation", EVERY)
def test_infinities_and_nan_are_those_of_torch(activation: Activation) -> None:
    at = np.array([np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(activate(activation, at), by_torch(activation, at)[0])
    slope(activation, at)  # raises nothing, warns of nothing


@pytest.mark.parametrize("activation", EVERY)
def test_slope_is_the_derivative(activation: Activation) -> None:
    a, step = np.linspace(-6.05, 6.05, 1000), 1e-5  # 0 is no closer than a step to any point
    difference = (activate(activation, a + step) - activate(activation, a - step)) / (2 * step)
    # third derivatives are below 6, which makes step^2; and numbers up to 6.05 are rounded before the division
    np.testing.assert_allclose(slope(activation, a), difference, rtol=0, atol=step**2 + 12 * 2.0**-53 / step)


def test_empty() -> None:
    for activation in EVERY:
        assert activate(activation, np.zeros((0, 3))).shape == slope(activation, np.zeros((0, 3))).shape == (0, 3)


def test_examples() -> None:
    outcome = doctest.testmod(importlib.import_module("mcelbo_kernels.reference.activations"))
    assert outcome.attempted
    assert not outcome.failed
