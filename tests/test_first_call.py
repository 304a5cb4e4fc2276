"""Kernels compiled before they are needed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mcelbo
from mcelbo_kernels.cpu.grid import work

X = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(0))
OPTIONS = {"num_samples": 5, "likelihood": mcelbo.Gaussian(0.5)}


def with_output(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 18), activation)


def test_a_step_of_training_finds_its_kernels_compiled() -> None:
    decoder = with_output(nn.Softplus())  # no other test has compiled these kernels
    before = len(work.signatures)
    assert mcelbo.warmup(decoder, X, **OPTIONS).path == "grid"
    compiled = len(work.signatures)
    assert compiled > before
    mu, logvar = torch.zeros(2, 4, 5, requires_grad=True)
    mcelbo.elbo(X, mu, logvar, decoder, **OPTIONS).loss.backward()
    with torch.no_grad():
        mcelbo.elbo(X, mu, logvar, decoder, **OPTIONS)
    assert len(work.signatures) == compiled


def test_nothing_else_changes() -> None:
    decoder, x = with_output(nn.Sigmoid()), X.clone().requires_grad_()
    state = torch.get_rng_state()
    mcelbo.warmup(decoder, x, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_a_decoder_that_is_not_fused_is_not_run() -> None:
    def decoder(z: Tensor) -> Tensor:
        raise AssertionError("nobody asked for it")

    assert mcelbo.warmup(decoder, X, num_samples=5).path == "any"


@pytest.mark.parametrize("sampler", ["exact", "sobol"])
def test_every_sampler(sampler: str) -> None:
    assert mcelbo.warmup(nn.Linear(2, 18), X, num_samples=4, sampler=sampler).path in ("grid", "gram")


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="decoder returns 17 pixels but x has shape"):
        mcelbo.warmup(nn.Linear(2, 17), X, num_samples=4)
