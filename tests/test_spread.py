"""`reconstruction_spread`: moments of the decoded samples, and the decomposition that holds without error."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mcelbo
from mcelbo.anydecoder import chunks


def data(batch: int, pixels: tuple[int, ...], latent: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, *pixels), (batch, latent), (batch, latent))
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)


@given(
    st.integers(0, 3),
    st.sampled_from([(1,), (6,), (2, 3)]),
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(0, 2**32),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)
def test_it_is_what_all_samples_at_once_give(
    batch: int, pixels: tuple[int, ...], latent: int, n: int, seed: int, dtype: torch.dtype, weighted: bool
) -> None:
    x, mu, logvar = data(batch, pixels, latent, seed, dtype)
    size = math.prod(pixels)
    maps = torch.randn(latent, size, generator=torch.Generator().manual_seed(1), dtype=dtype)

    def decoder(z: Tensor) -> Tensor:
        return (z @ maps).tanh()

    weight = torch.arange(size, dtype=dtype).reshape(pixels) if weighted else None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunks, "BUDGET", 4000)  # so that there are many chunks
        found = mcelbo.reconstruction_spread(x, mu, logvar, decoder, num_samples=n, seed=seed, weight=weight)
    eps = mcelbo.noise(seed, batch, n, latent, dtype=dtype)
    y = decoder(mu[:, None] + (logvar / 2).exp()[:, None] * eps).double()  # (B, n, m)
    mean = y.mean(1)
    w = torch.ones(size) if weight is None else weight.flatten()
    target = x.flatten(1).double()
    # A handful of roundings of numbers of order one in each decoded pixel; squares and sums are wide.
    tolerance = {"rtol": 50 * torch.finfo(dtype).eps, "atol": 50 * torch.finfo(dtype).eps}
    assert found.mean.shape == found.deviation.shape == x.shape
    assert found.mean.dtype == dtype
    assert torch.allclose(found.mean.flatten(1).double(), mean, **tolerance)
    deviation = (y - mean[:, None]).square().mean(1).sqrt()
    assert torch.allclose(found.deviation.flatten(1).double(), deviation, **tolerance)
    exact = (
        ((target[:, None] - y).square() * w).sum(2).mean(1),
        ((target - mean).square() * w).sum(1),
        ((y - mean[:, None]).square() * w).sum(2).mean(1),
    )
    for ours, theirs in zip(found[2:], exact, strict=True):
        assert ours.dtype == torch.float64
        assert torch.allclose(ours, theirs, rtol=tolerance["rtol"], atol=size * size * tolerance["atol"])
    assert torch.allclose(found.error, found.error_of_mean + found.variance, rtol=tolerance["rtol"])


@pytest.mark.parametrize("decoder", [nn.Linear(2, 6), nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 6))])
def test_its_error_is_that_of_the_loss(decoder: nn.Module) -> None:
    x, mu, logvar = data(3, (6,), 2, 0, torch.float32)
    call = {"num_samples": 100, "seed": 5, "sampler": "antithetic", "datum_offset": 7, "sample_offset": 8}
    found = mcelbo.reconstruction_spread(x, mu, logvar, decoder, **call)
    with torch.no_grad():
        loss = mcelbo.expected_squared_error(x, mu, logvar, decoder, reduction="sum", **call)
    # Positive terms: no sum loses more than a few roundings.
    assert found.error.sum().item() == pytest.approx(loss.item(), rel=20 * torch.finfo(torch.float32).eps)
    assert not found.mean.requires_grad


def test_of_one_sample_there_is_no_spread() -> None:
    x, mu, logvar = data(2, (6,), 2, 0, torch.float64)
    found = mcelbo.reconstruction_spread(x, mu, logvar, nn.Linear(2, 6).double(), num_samples=1, seed=0)
    assert not found.deviation.any()
    assert torch.equal(found.variance, torch.zeros(2, dtype=torch.float64))


def test_an_excluded_pixel_may_hold_anything() -> None:
    x, mu, logvar = data(2, (6,), 2, 0, torch.float64)
    decoder, weight = nn.Linear(2, 6).double(), torch.tensor([0.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    found = mcelbo.reconstruction_spread(x, mu, logvar, decoder, num_samples=9, seed=0, weight=weight)
    x[:, 0] = math.nan
    again = mcelbo.reconstruction_spread(x, mu, logvar, decoder, num_samples=9, seed=0, weight=weight)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_the_caller_s_noise_is_used() -> None:
    x, mu, logvar = data(2, (6,), 2, 0, torch.float64)
    decoder = nn.Linear(2, 6).double()
    eps = mcelbo.noise(3, 2, 5, 2, dtype=torch.float64)
    own = mcelbo.reconstruction_spread(x, mu, logvar, decoder, num_samples=5, eps=eps)
    seeded = mcelbo.reconstruction_spread(x, mu, logvar, decoder, num_samples=5, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(own, seeded, strict=True))


def test_a_decoder_of_other_pixels_is_refused() -> None:
    x, mu, logvar = data(2, (6,), 2, 0, torch.float32)
    with pytest.raises(ValueError, match="decoder returns 5 pixels"):
        mcelbo.reconstruction_spread(x, mu, logvar, nn.Linear(2, 5), num_samples=3)
