"""Losses on a GPU give what they give on the CPU for the same seed: values, gradients, noise, in all ways to ask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import mcelbo
from benchmarks.workloads import WORKLOADS, Case, Workload, build
from mcelbo import gpu, sampling
from mcelbo.anydecoder import reduction
from tests.gpu_cases import (
    BOUNDS,
    CPU,
    DECODERS,
    DEVICES,
    LOSSES,
    PIXELS,
    Inputs,
    assert_alike,
    elbo,
    expected_squared_error,
    inputs,
    on_gpu_alone,
    ulps,
    values_and_gradients,
)

SAMPLERS = ("iid", "antithetic", "sobol")
# in sizes that take large tiles, and several chunks
SIZES = {workload.name: workload for workload in WORKLOADS}
SIZES |= {f"{name}, more samples": replace(SIZES[name], samples=200) for name in ("affine", "mlp")}
DRAW: dict[str, Any] = {"num_samples": 12, "seed": 2**40 + 5}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test, by its full name."""
    return torch.empty(0, device=request.param).device


def compare(loss: Any, device: torch.device, dtype: torch.dtype = torch.float32, **shape: Any) -> None:
    """Compare a loss of `inputs` of a shape on a device with that on the CPU."""
    draw = DRAW | shape.pop("draw", {})
    ours = values_and_gradients(loss, inputs(device, dtype, **shape), **draw)
    theirs = values_and_gradients(loss, inputs(CPU, dtype, **shape | {"stand_in": False}), **draw)
    assert {tensor.device for tensor in ours} == {device}
    assert_alike(ours, theirs)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name: str, device: torch.device) -> None:
    compare(LOSSES[name], device)


@on_gpu_alone
@pytest.mark.parametrize("latent", [1, 2, 5, 40])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder(decoder: str, latent: int, device: torch.device) -> None:
    compare(elbo, device, decoder=decoder, latent=latent)
    compare(LOSSES["weighted, none"], device, decoder=decoder, latent=latent)


@on_gpu_alone
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(sampler: str, dtype: torch.dtype, device: torch.device) -> None:
    draw = {"sampler": sampler, "datum_offset": 3, "sample_offset": 6}
    for name in ("squared error, none", "learned scale"):
        compare(LOSSES[name], device, dtype, draw=draw)


@on_gpu_alone
@pytest.mark.parametrize("workload", SIZES.values(), ids=SIZES)
def test_workloads(workload: Workload, device: torch.device) -> None:
    def value_and_gradients(case: Case) -> list[torch.Tensor]:
        given, draw = (case.x, case.mu, case.logvar, case.decoder), DRAW | {"num_samples": workload.samples}
        loss = mcelbo.expected_squared_error(*given, **draw)
        return [loss.detach(), *torch.autograd.grad(loss, case.inputs)]

    assert_alike(value_and_gradients(build(workload, device=device)), value_and_gradients(build(workload)))


@pytest.mark.parametrize("n", [1, 3, 1000])
def test_any_number_of_samples(n: int, device: torch.device) -> None:
    for name in ("squared error, none", "squared error, mean"):
        compare(LOSSES[name], device, draw={"num_samples": n})


@on_gpu_alone
@pytest.mark.parametrize("decoder", ["identity", "narrow, identity"])
def test_so_many_samples_that_a_quadratic_form_pays(decoder: str, device: torch.device) -> None:
    compare(expected_squared_error, device, decoder=decoder, draw={"num_samples": 5000})


def test_no_data(device: torch.device) -> None:
    compare(LOSSES["squared error, sum"], device, batch=0)
    compare(LOSSES["squared error, none"], device, batch=0)


def test_noise_of_ones_own(device: torch.device) -> None:
    eps = torch.randn(5, 12, 3, generator=torch.Generator().manual_seed(1))
    for name in ("squared error, none", "Gaussian"):
        ours, theirs = (
            values_and_gradients(LOSSES[name], inputs(each), num_samples=12, eps=eps.to(each)) for each in (device, CPU)
        )
        assert_alike(ours, theirs)


def test_pixels_of_zero_and_one(device: torch.device) -> None:
    def loss(i: Inputs, **draw: Any) -> mcelbo.Bound:
        x = (i.x > 0.5).to(i.x)
        return mcelbo.elbo(x, i.mu, i.logvar, i.decoder, likelihood=mcelbo.Bernoulli(), **draw)

    for decoder in ("identity", "narrow, identity"):
        compare(loss, device, decoder=decoder)


@pytest.mark.parametrize("begin", [1, 2, 3])
def test_pixels_that_begin_between_multiples_of_16_bytes(begin: int, device: torch.device) -> None:
    def loss(i: Inputs, **draw: Any) -> torch.Tensor:
        x = torch.cat([i.x.new_zeros(begin), i.x.flatten()])[begin:].view_as(i.x)
        assert x.is_contiguous()
        assert x.data_ptr() % 16 == 4 * begin
        return expected_squared_error(i._replace(x=x), **draw)

    compare(loss, device)


def test_a_closed_form_without_kernels(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "obstacle", lambda device: "nothing is installed")
    compare(elbo, device, decoder="identity", stand_in=False, draw={"sampler": "exact"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, device: torch.device) -> None:
    """It is promoted on the way in, and gradients are rounded on the way out: to a neighbour where they lie between."""
    for name in ("squared error, mean", "weighted", "scales of pixels"):
        loss = LOSSES[name]
        ours = values_and_gradients(loss, inputs(device, dtype, stand_in=False), **DRAW)
        theirs = values_and_gradients(loss, inputs(CPU, dtype, stand_in=False), **DRAW)
        assert ours[0].dtype == torch.float32
        wide, narrow = ([t.dtype == torch.float32 for t in ours].count(kind) for kind in (True, False))
        assert_alike(ours[:wide], theirs[:wide])
        assert narrow
        assert_alike(ours[wide:], theirs[wide:], torch.finfo(dtype).eps)


def test_autocast(device: torch.device) -> None:
    """Nothing of a fused loss is rounded, whatever autocast makes of an encoder."""
    with torch.autocast(device.type, torch.bfloat16):
        ours = values_and_gradients(elbo, inputs(device, stand_in=False), **DRAW)
    assert_alike(ours, values_and_gradients(elbo, inputs(stand_in=False), **DRAW))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_noise_is_the_cpus(sampler: str, dtype: torch.dtype, device: torch.device) -> None:
    settings: dict[str, Any] = {"sampler": sampler, "dtype": dtype, "datum_offset": 7, "sample_offset": 2}
    ours = mcelbo.noise(11, 4, 6, 5, device=device, **settings)
    assert ours.device == device
    assert ulps(ours.cpu(), mcelbo.noise(11, 4, 6, 5, **settings)) <= 2


@on_gpu_alone
@pytest.mark.parametrize("latent", [1, 3, 9])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_losses_draw_that_noise(sampler: str, latent: int, device: torch.device) -> None:
    """With z = eps, one pixel that is one of the latents and x = 0 the error is eps^2: 2 ulp of eps are 4 of that."""
    batch, n = 3, 2000
    zero, eps = torch.zeros(batch, latent, device=device), mcelbo.noise(5, batch, n, latent, sampler=sampler)
    decoder = nn.Linear(latent, 1, device=device)
    for k in range(latent):
        with torch.no_grad():
            decoder.weight.copy_(torch.eye(latent)[k : k + 1])
            decoder.bias.zero_()
            errors = mcelbo.expected_squared_error(
                zero[:, :1], zero, zero, decoder, num_samples=n, sampler=sampler, seed=5, reduction="none"
            )
        assert ulps(errors.cpu(), eps[..., k].square()) <= 6  # and one rounding of each square


def test_seeds_as_tensors_and_from_generators(device: torch.device) -> None:
    i = inputs(device)
    by_number = expected_squared_error(i, num_samples=4, seed=9)
    assert torch.equal(by_number, expected_squared_error(i, num_samples=4, seed=torch.tensor(9, device=device)))
    first, same, other = (
        expected_squared_error(i, num_samples=4, generator=torch.Generator(device).manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_tensors_laid_out_in_any_way(device: torch.device) -> None:
    plain, strided = inputs(device), inputs(device)
    x = strided.x.detach().t().contiguous().t().requires_grad_()
    mu = strided.mu.detach().repeat_interleave(2, 1)[:, ::2].requires_grad_()
    weight = strided.weight.detach()[:1].expand(5, PIXELS)
    strided = strided._replace(x=x, mu=mu, weight=weight.requires_grad_())
    plain = plain._replace(weight=weight.detach().clone().requires_grad_())
    for name in ("weighted", "weighted, none"):
        ours, theirs = (values_and_gradients(LOSSES[name], each, **DRAW) for each in (strided, plain))
        assert_alike(ours, theirs)


def test_an_upstream_gradient_without_memory_of_its_own(device: torch.device) -> None:
    i, same = inputs(device), inputs(device)
    expected_squared_error(i, reduction="none", **DRAW).sum().backward()
    (12 * expected_squared_error(same, reduction="sum", **DRAW)).backward()
    for one, other in ((i.mu, same.mu), (i.logvar, same.logvar), (i.x, same.x)):
        assert one.grad is not None
        assert other.grad is not None
        assert_alike([one.grad], [other.grad])


def test_samples_decoded_in_chunks(device: torch.device) -> None:
    """The path of any decoder, with as many samples as take several chunks."""

    def loss(i: Inputs, **draw: Any) -> torch.Tensor:
        return mcelbo.expected_squared_error(i.x, i.mu, i.logvar, lambda z: i.decoder(z), **draw)

    compare(loss, device, draw={"num_samples": 20_000})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_decoded_without_kernels(sampler: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left where nothing of numba-cuda is installed: noise from the CPU, and plain operations."""
    for module in (gpu, sampling, reduction):
        monkeypatch.setattr(module, "obstacle", lambda device: "nothing is installed")

    def loss(i: Inputs, **draw: Any) -> mcelbo.Bound:
        return mcelbo.elbo(i.x, i.mu, i.logvar, lambda z: i.decoder(z), **draw)

    compare(loss, device, draw={"sampler": sampler})


def test_spreads(device: torch.device) -> None:
    ours, theirs = (
        mcelbo.reconstruction_spread(i.x, i.mu, i.logvar, i.decoder, **DRAW) for i in (inputs(device), inputs())
    )
    assert_alike(ours, theirs, BOUNDS[torch.float32])
