"""The ops as a GPU computes them, on tensors whose memory interpreted kernels read: against the ops on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mcelbo import backends, gpu
from mcelbo.anydecoder.reduction import reduced
from mcelbo.sobol import directions
from mcelbo_kernels import cpu
from mcelbo_kernels.problem import Draw
from tests import cuda_targets  # isort: split

from mcelbo_kernels.cuda import Place, Recording
from mcelbo_kernels.cuda.recording import substituted


class TorchMemory(cuda_targets.DeviceMemory):
    """A tensor's memory, which interpreted kernels read and write."""

    address = 0  # of no use to whom memory itself is handed over

    def __init__(self, tensor: Tensor, written: bool = True) -> None:
        self.owner = tensor.detach().contiguous()
        super().__init__(self.owner.numpy(), written)


class TorchInterpreter(cuda_targets.Interpreter):
    """What stands for `gpu.TorchTarget`."""

    def hold(self, tensor: Tensor) -> TorchMemory:
        """Return a tensor's memory."""
        return TorchMemory(tensor)

    def upload(self, array: Any) -> TorchMemory:
        """Return a copy in the device's memory."""
        return TorchMemory(torch.from_numpy(array.copy()))

    def empty(self, count: int, dtype: Any) -> TorchMemory:
        """Return memory that must be written before it is read."""
        return TorchMemory(torch.empty(count, dtype=gpu.DTYPES[np.dtype(dtype)]), written=False)

    def repeat(self, recording: Recording, inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Launch what was recorded, every place in memory of its own."""
        arrays: dict[Place, Any] = {
            place: TorchMemory(tensor)
            for place, tensor in zip(recording.inputs, inputs, strict=True)
            if place is not None and tensor is not None
        }
        made = [*recording.scratch, *[place for place in recording.results if place is not None]]
        arrays |= {place: self.empty(len(place), place.dtype) for place in made}
        for launch in recording.launches:
            self.launch(launch.kernel, launch.blocks, *substituted(launch, arrays))
        return [
            None if place is None else arrays[place].owner.view(shape)
            for place, shape in zip(recording.results, recording.shapes, strict=True)
        ]


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def target(device: torch.device) -> Iterator[TorchInterpreter]:
        yield TorchInterpreter()

    monkeypatch.setattr(backends, "target_on", target)


def inputs(
    batch: int = 3, n: int = 6, sampler: str = "iid", weight: bool = False, eps: bool = False
) -> tuple[Any, ...]:
    """The arguments of an op: a relu layer and sigmoid output, from 3 latents to 11 and to 70 pixels."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    layers = [normal(11, 3), normal(11), normal(70, 11) / 3, normal(70)]
    data = (normal(batch, 70), normal(batch, 3), normal(batch, 3), normal(1, 70).abs() if weight else None)
    noise = normal(batch, n, 3) if eps else None
    activations = ["relu", "sigmoid"], [0.0, 0.0]
    return *data, noise, layers, torch.tensor(9), "squared_error", *activations, sampler, n, 0, 0


CASES: dict[str, dict[str, Any]] = {
    "iid": {},
    "pixel weights": {"weight": True},
    "sobol": {"sampler": "sobol", "n": 5},
    "injected": {"eps": True},
}


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Equal but for roundings of single precision; an empty one is one that nobody asked for."""
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()) if other.numel() else 0)


@pytest.mark.parametrize("name", CASES)
def test_sum_of_errors(name: str) -> None:
    given = inputs(**CASES[name])
    need = [True, True, True, given[3] is not None, False, True, True, True, True]
    *sums, gradients = backends.sum_of_errors_on_gpu(*given, need)
    *expected, exact = backends.sum_of_errors_on_cpu(*given, need)
    assert_close([*sums, *gradients], [*expected, *exact])


def test_only_what_is_needed() -> None:
    given = inputs()
    need = [False, True, False, False, False, False, True, True, False]
    *_, gradients = backends.sum_of_errors_on_gpu(*given, need)
    *_, exact = backends.sum_of_errors_on_cpu(*given, need)
    assert_close(gradients, exact)


def test_errors_and_their_gradients() -> None:
    given = inputs()
    errors = backends.errors_on_gpu(*given)
    assert_close([errors], [backends.errors_on_cpu(*given)])
    flat, widths = torch.cat([layer.flatten() for layer in given[5]]), [3, 11, 70]
    # one upstream gradient for all, without memory of its own
    upstream = torch.ones(()).expand(errors.shape)
    arguments = (*given[:5], flat, widths, *given[6:], [True, True, True, False, False, True, True, True, True])
    ours = backends.error_gradients_on_gpu(upstream, *arguments)
    assert_close([ours], [backends.error_gradients_on_cpu(upstream, *arguments)])


def test_tensors_that_do_not_go_together_are_refused() -> None:
    x, mu, logvar, weight, eps, layers, seed, *rest = inputs()
    need = [False, True, True, False, False, True, True, True, True]
    with pytest.raises(TypeError, match="expected tensors of one dtype and a seed of int64"):
        backends.sum_of_errors_on_gpu(x, mu.double(), logvar, weight, eps, layers, seed, *rest, need)
    with pytest.raises(TypeError, match="expected tensors of one dtype and a seed of int64"):
        backends.errors_on_gpu(x, mu, logvar, weight, eps, layers, seed.float(), *rest)
    with pytest.raises(RuntimeError, match="invalid for input of size 3"):
        backends.errors_on_gpu(x, mu, logvar, weight, eps, layers, seed.expand(3), *rest)
    flat, widths = torch.cat([layer.flatten() for layer in layers]), [3, 11, 70]
    with pytest.raises(ValueError, match=r"upstream has shape \(1, 1\): expected \(3, 6\)"):
        backends.error_gradients_on_gpu(torch.ones(1, 1), x, mu, logvar, weight, eps, flat, widths, seed, *rest, need)


def test_a_batch_without_data() -> None:
    given, need = inputs(batch=0), [True, True, True, False, False, True, True, True, True]
    *sums, gradients = backends.sum_of_errors_on_gpu(*given, need)
    *expected, exact = backends.sum_of_errors_on_cpu(*given, need)
    assert_close([*sums, *gradients], [*expected, *exact])
    assert_close([backends.errors_on_gpu(*given)], [backends.errors_on_cpu(*given)])


@pytest.mark.parametrize("sampler", ["iid", "sobol"])
def test_noise(sampler: str) -> None:
    draw = Draw(5, 9, sampler, 2, 3, directions=directions(sampler, 3))
    found = backends.noise_on_gpu(draw, 4, 3, np.float32, torch.tensor(9))
    exact = torch.from_numpy(cpu.noise(draw, 4, 3, np.float32))
    torch.testing.assert_close(found, exact, rtol=2.5e-7, atol=0)


def test_errors_of_decoded_samples() -> None:
    y, x, weight = torch.randn(3, 5, 70), torch.randn(3, 70), torch.rand(1, 70)
    # one upstream gradient for all, without memory of its own
    upstream = torch.tensor(2.0, dtype=torch.float64).expand(3, 5)
    found = backends.decoded_errors_on_gpu("squared_error", y, x, weight, upstream, (True, True, True))
    expected = reduced("squared_error", y, x, weight, upstream, (True, True, True))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    bare = backends.decoded_errors_on_gpu("bernoulli", y, x, None, None, (False, False, False))
    assert bare[1:] == [None, None, None]
    torch.testing.assert_close(bare[0], reduced("bernoulli", y, x, None).errors, rtol=1e-5, atol=1e-5)
