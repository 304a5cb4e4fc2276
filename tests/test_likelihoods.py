"""The Gaussian likelihood: which scales it takes, and what it makes of them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from mcelbo import Gaussian
from mcelbo.likelihoods import log_density

BAD: list[tuple[Any, type[Exception], str]] = [
    (0.0, ValueError, "sigma is 0.0: expected a finite sigma > 0"),
    (-1, ValueError, "sigma is -1: expected a finite sigma > 0"),
    (math.nan, ValueError, "sigma is nan: expected a finite sigma > 0"),
    (math.inf, ValueError, "sigma is inf: expected a finite sigma > 0"),
    ("best", ValueError, "sigma is 'best': expected a float, a scalar tensor or 'optimal'"),
    (True, TypeError, "sigma is True: expected a float or a scalar tensor"),
    (None, TypeError, "sigma is None: expected a float or a scalar tensor"),
    (torch.ones(2), TypeError, "sigma is a tensor of torch.float32 and shape (2,): expected one floating-point number"),
    (torch.tensor(1), TypeError, "sigma is a tensor of torch.int64 and shape (): expected one floating-point number"),
]


@pytest.mark.parametrize(("sigma", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_scales_are_named(sigma: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Gaussian(sigma)


@given(sigma=st.floats(1e-3, 1e3), pixels=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_the_density_is_a_normals(sigma: float, pixels: int, seed: int) -> None:
    r = torch.randn(pixels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = Normal(torch.zeros_like(r), sigma).log_prob(r).sum()
    for scale in (sigma, torch.tensor(sigma, dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64)):
        found = log_density(r.square().sum(), pixels, *Gaussian(scale).variance(r.square().sum(), pixels))
        torch.testing.assert_close(found, expected)


@given(sigma=st.floats(0.1, 10), seed=st.integers(0, 2**31))
def test_no_scale_beats_the_optimal_one(sigma: float, seed: int) -> None:
    total = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    best = log_density(total, 3, *Gaussian("optimal").variance(total, 3))
    other = log_density(total, 3, *Gaussian(sigma).variance(total, 3))
    assert other <= best + 1e-12 * best.abs()


def test_a_tensor_scale_takes_the_dtype_of_the_errors() -> None:
    total = torch.tensor(2.0)
    variance, log_variance = Gaussian(torch.tensor(0.5, dtype=torch.float64)).variance(total, 1)
    assert isinstance(variance, torch.Tensor)
    assert isinstance(log_variance, torch.Tensor)
    assert variance.dtype == log_variance.dtype == torch.float32


def test_a_negative_learned_scale_shows_as_nan() -> None:
    total = torch.tensor(2.0)
    assert log_density(total, 1, *Gaussian(torch.tensor(-0.5)).variance(total, 1)).isnan()
