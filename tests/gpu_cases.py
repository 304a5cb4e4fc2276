"""Losses of the public API on some device, and what they are to be alike to: the same on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import mcelbo

# "cpu" tests these tests, where there is no GPU: the chunked path is then what must be alike.
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
# where the stand-in would compile more CPU kernels than testing the tests is worth
on_gpu_alone = pytest.mark.parametrize("device", DEVICES[1:], indirect=True)
CPU = torch.device("cpu")
# Of the largest number of a result: some hundred float32 terms in two orders, an epsilon for each of about a hundred
# roundings; in float64 as many, and noise that is off by 2 ulp.
BOUNDS = {torch.float32: 1.2e-5, torch.float64: 1e-13}
PIXELS = 70


class Unfused(nn.Module):
    """A decoder that nobody recognises."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        """Decode."""
        decoded: Tensor = self.decoder(z)
        return decoded


class Inputs(NamedTuple):
    """What losses take, all of it with gradients."""

    x: Tensor
    mu: Tensor
    logvar: Tensor
    weight: Tensor
    scale: Tensor  # of all pixels
    scales: Tensor  # of each
    decoder: nn.Module

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What gradients are taken by."""
        return *self[:6], *self.decoder.parameters()


DECODERS: dict[str, Callable[[int], nn.Sequential]] = {
    "sigmoid": lambda d: nn.Sequential(nn.Linear(d, PIXELS), nn.Sigmoid()),
    "identity": lambda d: nn.Sequential(nn.Linear(d, PIXELS)),
    "without bias": lambda d: nn.Sequential(nn.Linear(d, PIXELS, bias=False), nn.Softplus()),
    "hidden": lambda d: nn.Sequential(nn.Linear(d, 9), nn.GELU(), nn.Linear(9, PIXELS), nn.Sigmoid()),
    "deep": lambda d: nn.Sequential(
        nn.Linear(d, 17), nn.Tanh(), nn.Linear(17, 40), nn.SiLU(), nn.Linear(40, PIXELS), nn.ELU()
    ),
    "narrow, identity": lambda d: nn.Sequential(nn.Linear(d, 4), nn.Softplus(), nn.Linear(4, PIXELS)),
}


def inputs(
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    *,
    latent: int = 3,
    batch: int = 5,
    decoder: str = "hidden",
    stand_in: bool = True,
) -> Inputs:
    """Return the same numbers on any device; on the CPU that is under test, with a decoder that is not fused."""
    generator = torch.Generator().manual_seed(3)

    def leaf(numbers: Tensor) -> Tensor:
        return numbers.to(device, dtype).requires_grad_()

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module: nn.Module = DECODERS[decoder](latent).to(device, dtype)
    return Inputs(
        leaf(torch.rand(batch, PIXELS, generator=generator)),
        leaf(normal(batch, latent)),
        leaf(normal(batch, latent) / 2 - 1),
        leaf(torch.rand(batch, PIXELS, generator=generator) + 0.1),
        leaf(torch.tensor(0.7)),
        leaf(torch.rand(PIXELS, generator=generator) + 0.5),
        Unfused(module) if stand_in and device.type == "cpu" else module,
    )


def expected_squared_error(i: Inputs, **more: Any) -> Tensor:
    """Return the loss without pixel weights."""
    return mcelbo.expected_squared_error(i.x, i.mu, i.logvar, i.decoder, **more)


def elbo(i: Inputs, **more: Any) -> mcelbo.Bound:
    """Return the bound without pixel weights."""
    return mcelbo.elbo(i.x, i.mu, i.logvar, i.decoder, **more)


LOSSES: dict[str, Callable[..., Tensor | mcelbo.Bound]] = {
    **{
        f"squared error, {reduction}": lambda i, reduction=reduction, **draw: expected_squared_error(
            i, reduction=reduction, **draw
        )
        for reduction in ("none", "sum", "batchmean", "mean")
    },
    "weighted": lambda i, **draw: expected_squared_error(i, weight=i.weight, **draw),
    "weighted alike": lambda i, **draw: expected_squared_error(i, weight=i.weight[0], **draw),
    "weighted, none": lambda i, **draw: expected_squared_error(i, weight=i.weight, reduction="none", **draw),
    "Gaussian": lambda i, **draw: elbo(i, likelihood=mcelbo.Gaussian(0.5), beta=2.0, **draw),
    "learned scale": lambda i, **draw: elbo(i, likelihood=mcelbo.Gaussian(i.scale), **draw),
    "scales of pixels": lambda i, **draw: elbo(i, likelihood=mcelbo.Gaussian(i.scales), **draw),
    "weighted scales of pixels": lambda i, **draw: elbo(
        i, weight=i.weight, likelihood=mcelbo.Gaussian(i.scales), **draw
    ),
    "optimal scale": lambda i, **draw: elbo(i, likelihood=mcelbo.Gaussian("optimal"), **draw),
    "weighted bound": lambda i, **draw: elbo(i, weight=i.weight, likelihood=mcelbo.Gaussian("optimal"), **draw),
    "criterion": lambda i, **draw: mcelbo.ELBOLoss(num_samples=draw.pop("num_samples"))(
        i.x, i.mu, i.logvar, i.decoder, **draw
    ),
}


def values_and_gradients(loss: Callable[..., Tensor | mcelbo.Bound], i: Inputs, **draw: Any) -> list[Tensor]:
    """Return a loss, the other parts of a bound, and the gradients by all that the loss depends on."""
    result = loss(i, **draw)
    value, parts = (result.loss, result[1:]) if isinstance(result, mcelbo.Bound) else (result, ())
    upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=value.device).reshape(value.shape)
    gradients = torch.autograd.grad(value, i.leaves, upstream, allow_unused=True)
    return [tensor.detach() for tensor in (value, *parts, *gradients) if tensor is not None]


def assert_alike(ours: Sequence[Tensor], theirs: Sequence[Tensor], bound: float | None = None) -> None:
    """Equal up to `bound` times the largest number of each, by default that of its dtype in `BOUNDS`."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        largest = float(other.abs().max()) if other.numel() else 0.0
        allowed = BOUNDS[other.dtype] if bound is None else bound
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=0, atol=allowed * largest)


def ulps(one: Tensor, other: Tensor) -> int:
    """Return how many numbers of their dtype lie between two tensors' at most."""
    whole = {torch.float32: torch.int32, torch.float64: torch.int64}[one.dtype]
    assert torch.equal(one.signbit(), other.signbit())
    return int((one.view(whole).long() - other.view(whole).long()).abs().max())
