"""Every activation and its derivative against torch in float64, through the kinks and at the ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from torch.nn import functional

from mcelbo_kernels.numerics.activations import BY_NAME
from mcelbo_kernels.problem import ACTIVATIONS
from tests.vectors import over_vectors

PARAMETER = 0.3
TORCH = {
    "identity": lambda a: a * 1,
    "relu": functional.relu,
    "leaky_relu": lambda a: functional.leaky_relu(a, PARAMETER),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "elu": lambda a: functional.elu(a, PARAMETER),
    "gelu": functional.gelu,
    "gelu_tanh": lambda a: functional.gelu(a, approximate="tanh"),
    "silu": functional.silu,
}


def value_and_slope(name: str, a: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Run the activation in vector registers."""
    function, parameter = BY_NAME[name], PARAMETER

    @njit(error_model="numpy")
    def value(x):
        return function(x, parameter)[0]

    @njit(error_model="numpy")
    def slope(x):
        return function(x, parameter)[1]

    return over_vectors(value, a), over_vectors(slope, a)


def test_every_activation_of_a_problem_has_a_kernel() -> None:
    assert set(BY_NAME) == set(ACTIVATIONS)


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_derivative(name: str, real: Any) -> None:
    kinks = [0.0, -0.0, 20.0, np.nextafter(20.0, 21.0), -20.0, 1e-30, -1e-30, 30.0, -30.0, 100.0, -100.0]
    a = np.concatenate([np.random.default_rng(3).uniform(-8, 8, 4000), kinks]).astype(real)
    exact = torch.tensor(a.astype(np.float64), requires_grad=True)
    y = TORCH[name](exact)
    y.sum().backward()
    value, slope = value_and_slope(name, a)
    # errors of a few epsilon on the scale of what is added up: |a| + 1
    scale = 8 * np.finfo(real).eps * (np.abs(a.astype(np.float64)) + 1)
    assert (np.abs(value - y.detach().numpy()) <= scale).all()
    assert (np.abs(slope - exact.grad.numpy()) <= scale).all()


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_is_kept_and_infinity_is_torch_s(name: str, real: Any) -> None:
    a = np.array([np.nan, np.inf, -np.inf], real)
    value, _ = value_and_slope(name, a)
    # in float64, because where there is AVX-512 torch's gelu of infinity is NaN in float32
    exact = TORCH[name](torch.from_numpy(a.astype(np.float64))).numpy()
    np.testing.assert_array_equal(value, exact.astype(real))
