"""What a GPU adds to a loss: streams, graphs, other devices, memory; and that nothing waits or changes a bit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import mcelbo
from tests.gpu_cases import (
    DEVICES,
    LOSSES,
    assert_alike,
    elbo,
    expected_squared_error,
    inputs,
    values_and_gradients,
)

DRAW: dict[str, Any] = {"num_samples": 12, "seed": 2**40 + 5}
GPU = torch.device("cuda", 0)
MOST_MEGABYTES = 64  # of 100,000 samples beyond those of 16


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test, by its full name."""
    return torch.empty(0, device=request.param).device


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise where torch would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_waits(name: str) -> None:
    i, seed = inputs(GPU), torch.tensor(3, device=GPU)
    for each in (3, None, seed):
        values_and_gradients(LOSSES[name], i, num_samples=12, seed=each)
    with no_waiting():
        for each in (3, None, seed):
            values_and_gradients(LOSSES[name], i, num_samples=12, seed=each)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", ["antithetic", "sobol"])
@pytest.mark.parametrize("latent", [1, 3])
def test_no_sampler_waits(sampler: str, latent: int) -> None:
    i = inputs(GPU, latent=latent)
    values_and_gradients(elbo, i, sampler=sampler, **DRAW)
    with no_waiting():
        values_and_gradients(elbo, i, sampler=sampler, **DRAW)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", ["iid", "antithetic", "sobol"])
def test_noise_waits_for_nothing(sampler: str) -> None:
    seed = torch.tensor(3, device=GPU)
    first = mcelbo.noise(seed, 4, 6, 5, sampler=sampler)
    with no_waiting():
        again = mcelbo.noise(seed, 4, 6, 5, sampler=sampler)
    assert torch.equal(first, again)


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_side_stream(reduction: str) -> None:
    """The loss sees what its stream computes before it, and is seen by what comes after: by their order alone."""
    i, loss = inputs(GPU), LOSSES[f"squared error, {reduction}"]
    expected = values_and_gradients(loss, i, **DRAW)
    data = [leaf.detach().clone() for leaf in i.leaves[:3]]
    side = torch.cuda.Stream(GPU)
    side.wait_stream(torch.cuda.current_stream(GPU))
    with torch.cuda.stream(side), no_waiting():
        late = torch.zeros(4096, 4096, device=GPU)
        for _ in range(20):
            late = late @ late
        x, mu, logvar = ((tensor + late[0, 0]).requires_grad_() for tensor in data)
        found = values_and_gradients(loss, i._replace(x=x, mu=mu, logvar=logvar), **DRAW)
        copies = [tensor.clone() for tensor in found]
    side.synchronize()
    for one, other in zip(copies, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
def test_the_second_gpu() -> None:
    second = torch.device("cuda", 1)
    with torch.cuda.device(0):
        for name in ("squared error, none", "learned scale"):
            found = values_and_gradients(LOSSES[name], inputs(second), **DRAW)
            assert {tensor.device for tensor in found} == {second}
            assert_alike(found, values_and_gradients(LOSSES[name], inputs(GPU), **DRAW))
        assert torch.cuda.current_device() == 0
        with pytest.raises(ValueError, match="seed is on cuda:0 and the noise on cuda:1"):
            expected_squared_error(inputs(second), num_samples=4, seed=torch.tensor(1, device=GPU))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["squared error, mean", "squared error, none", "learned scale"])
def test_a_hundred_calls_give_the_same_bits(name: str) -> None:
    i, draw = inputs(GPU, batch=64, decoder="deep"), DRAW | {"num_samples": 300}
    first = values_and_gradients(LOSSES[name], i, **draw)
    for _ in range(99):
        again = values_and_gradients(LOSSES[name], i, **draw)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


class Training:
    """A model, its optimiser, and a step of both."""

    def __init__(self) -> None:
        self.inputs = inputs(GPU)
        self.optimiser = torch.optim.SGD(self.inputs.leaves, lr=1e-3)

    def step(self, seed: Tensor) -> Tensor:
        """Take a step; return the loss before it."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = elbo(self.inputs, num_samples=12, seed=seed).loss
        loss.backward()
        self.optimiser.step()
        return loss.detach()


@pytest.mark.gpu
def test_a_captured_training_step_is_replayed_with_other_seeds() -> None:
    ours, theirs, seed = Training(), Training(), torch.zeros((), dtype=torch.int64, device=GPU)
    side = torch.cuda.Stream(GPU)
    side.wait_stream(torch.cuda.current_stream(GPU))
    with torch.cuda.stream(side):
        for _ in range(3):
            ours.step(seed)
    torch.cuda.current_stream(GPU).wait_stream(side)
    with torch.no_grad():
        for leaf, fresh in zip(ours.inputs.leaves, theirs.inputs.leaves, strict=True):
            leaf.copy_(fresh)
    graph = torch.cuda.CUDAGraph()
    ours.optimiser.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = ours.step(seed)
    losses = set()
    for number in (5, 6, 2**62 + 1, 5):
        seed.fill_(number)
        graph.replay()
        assert_alike([loss], [theirs.step(torch.tensor(number, device=GPU))])
        losses.add(float(loss))
    assert len(losses) == 4
    assert_alike(*([leaf.detach() for leaf in training.inputs.leaves] for training in (ours, theirs)))


@pytest.mark.gpu
def test_a_captured_call_without_a_seed_draws_anew() -> None:
    i, losses = inputs(GPU), set()
    with torch.no_grad():
        expected_squared_error(i, num_samples=12)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = expected_squared_error(i, num_samples=12)
    for _ in range(5):
        graph.replay()
        losses.add(float(loss))
    assert len(losses) == 5


def peak(n: int, decoder: str) -> int:
    """Return the bytes that a call with gradients takes at most, beyond those taken before."""
    i = inputs(GPU, batch=1, decoder=decoder)
    torch.cuda.reset_peak_memory_stats(GPU)
    before = torch.cuda.memory_allocated(GPU)
    values_and_gradients(LOSSES["squared error, sum"], i, num_samples=n, seed=1)
    return torch.cuda.max_memory_allocated(GPU) - before


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", ["sigmoid", "identity", "deep"])
def test_memory_does_not_grow_with_the_samples(decoder: str) -> None:
    peak(16, decoder)
    assert peak(100_000, decoder) - peak(16, decoder) < MOST_MEGABYTES * 2**20


@pytest.mark.gpu
def test_tensors_on_several_devices_are_refused() -> None:
    i, on_cpu = inputs(GPU), inputs(stand_in=False)
    with pytest.raises(ValueError, match="seed is on cpu and the noise on cuda:0: move both to one device"):
        expected_squared_error(i, num_samples=4, seed=torch.tensor(1))
    with pytest.raises(ValueError, match="mu is on cpu and x on cuda:0: move both to one device"):
        expected_squared_error(i._replace(mu=on_cpu.mu), num_samples=4)
    with pytest.raises(ValueError, match="weight of layer 0 of the decoder is on cpu and x on cuda:0"):
        expected_squared_error(i._replace(decoder=on_cpu.decoder), num_samples=4)
    with pytest.raises(ValueError, match="generator is on cpu and the noise on cuda:0"):
        expected_squared_error(i, num_samples=4, generator=torch.Generator())


@pytest.mark.gpu
def test_explain_and_warmup() -> None:
    i = inputs(GPU)
    for explanation in (mcelbo.explain(i.decoder), mcelbo.warmup(i.decoder, i.x, num_samples=4)):
        assert (explanation.path, explanation.device) == ("grid", "cuda")


# What composes with torch on the CPU does so on a GPU


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
@pytest.mark.parametrize("name", ["squared error, mean", "squared error, none", "learned scale"])
def test_a_compiled_loss(name: str, device: torch.device) -> None:
    i, seed = inputs(device, stand_in=False), torch.tensor(4, device=device)
    backend = "aot_eager" if device.type == "cpu" else "inductor"
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend=backend)
    found = values_and_gradients(compiled, i, num_samples=12, seed=seed)
    assert_alike(found, values_and_gradients(LOSSES[name], i, num_samples=12, seed=seed))
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_a_loss_that_torch_compiles_into_graphs() -> None:
    """Their memory belongs to torch: what is made at the first call and kept lies elsewhere."""
    i, seed = inputs(GPU, latent=7, stand_in=False), torch.tensor(4, device=GPU)
    compiled = torch.compile(expected_squared_error, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        found = [each.clone() for each in values_and_gradients(compiled, i, num_samples=16, seed=seed, sampler="sobol")]
        occupied = torch.full((1 << 20,), 7.0, device=GPU)
        expected = values_and_gradients(expected_squared_error, i, num_samples=16, seed=seed, sampler="sobol")
        assert_alike(found, expected)
        del occupied
    torch.compiler.reset()


def test_a_functional_gradient(device: torch.device) -> None:
    i = inputs(device, stand_in=False)

    def loss(mu: Tensor, logvar: Tensor) -> Tensor:
        return expected_squared_error(i._replace(mu=mu, logvar=logvar), **DRAW)

    found = torch.func.grad(loss, argnums=(0, 1))(i.mu.detach(), i.logvar.detach())
    assert_alike(found, torch.autograd.grad(loss(i.mu, i.logvar), (i.mu, i.logvar)))


def test_gradients_of_many_upstreams(device: torch.device) -> None:
    i = inputs(device, stand_in=False)
    errors = expected_squared_error(i, reduction="none", **DRAW)
    upstreams = torch.eye(errors.numel(), device=device)[:3].view(3, *errors.shape)
    batched = torch.autograd.grad(errors, i.mu, upstreams, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(errors, i.mu, each, retain_graph=True)[0] for each in upstreams]
    assert_alike(batched, [torch.stack(single)])
