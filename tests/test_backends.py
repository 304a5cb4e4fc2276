"""The ops as a GPU computes them, on tensors whose memory interpreted kernels read: against the ops on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from struct import unpack_from
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from mcelbo import backends
from mcelbo.anydecoder.reduction import reduced
from mcelbo.sobol import directions
from mcelbo_kernels import cpu
from mcelbo_kernels.problem import Draw
from tests import cuda_targets  # isort: split

from mcelbo_kernels.cuda import Recording, recording
from mcelbo_kernels.cuda.seam import FORMATS, SLOT, flat


class TorchMemory(cuda_targets.DeviceMemory):
    """A tensor's memory, which interpreted kernels read and write."""

    def __init__(self, tensor: Tensor, written: bool = True) -> None:
        self.owner = tensor.detach().contiguous()
        super().__init__(self.owner.numpy(), written)
        self.address = id(self)


class TorchInterpreter(cuda_targets.Interpreter):
    """What stands for `gpu.TorchTarget`."""

    def hold(self, tensor: Tensor) -> TorchMemory:
        """Return a tensor's memory."""
        return TorchMemory(tensor)

    uploaded: ClassVar[dict[int, TorchMemory]] = {}

    def upload(self, array: Any) -> TorchMemory:
        """Return a copy in the device's memory, which stays there."""
        copy = TorchMemory(torch.from_numpy(array.copy()))
        self.uploaded[copy.address] = copy
        return copy

    def empty(self, count: int | tuple[int, ...], dtype: Any) -> TorchMemory:
        """Return memory that must be written before it is read."""
        return TorchMemory(torch.from_numpy(np.empty(count, dtype)), written=False)

    def repeat(
        self, recorded: Recording, inputs: Sequence[Tensor | None], numbers: Sequence[int]
    ) -> list[Tensor | None]:
        """Launch what was recorded, each array in memory of its own: of scratch up to where the next one begins."""
        given = [TorchMemory(tensor) for tensor in inputs if tensor is not None]
        results = [None if place is None else self.empty(place.shape, place.dtype) for place in recorded.results]
        bases: list[Any] = [None, *given, "scratch", *[result for result in results if result is not None], *numbers]
        of_scratch = recorded.bases == 1 + len(given)
        starts = [*sorted({*recorded.constants[of_scratch].tolist()}), recorded.size]
        scratch = {start: self.empty(end - start, np.uint8) for start, end in pairwise(starts)}

        def argument(kind: Any, constant: int, base: Any) -> Any:
            if base == "scratch":
                return scratch[constant]
            if base is not None:
                return base
            if kind in FORMATS:
                return unpack_from(FORMATS[kind], constant.to_bytes(SLOT, "little", signed=True))[0]
            return self.uploaded.get(constant)

        for kernel, blocks, first in recorded.launches:
            slots = enumerate(flat(kernel.signature), first)
            values = [argument(kind, int(recorded.constants[at]), bases[recorded.bases[at]]) for at, kind in slots]
            self.launch(kernel, blocks, *values)
        return [None if result is None else result.owner for result in results]


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def target(device: torch.device) -> Iterator[TorchInterpreter]:
        yield TorchInterpreter()

    monkeypatch.setattr(backends, "target_on", target)


def inputs(
    batch: int = 3,
    n: int = 6,
    sampler: str = "iid",
    weight: bool = False,
    eps: bool = False,
    offsets: tuple[int, int] = (0, 0),
) -> tuple[Any, ...]:
    """The arguments of an op: a relu layer and sigmoid output, from 3 latents to 11 and to 70 pixels."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    layers = [normal(11, 3), normal(11), normal(70, 11) / 3, normal(70)]
    data = (normal(batch, 70), normal(batch, 3), normal(batch, 3), normal(1, 70).abs() if weight else None)
    noise = normal(batch, n, 3) if eps else None
    activations = ["relu", "sigmoid"], [0.0, 0.0]
    return *data, noise, layers, torch.tensor(9), "squared_error", *activations, sampler, n, *offsets


CASES: dict[str, dict[str, Any]] = {
    "iid": {},
    "pixel weights": {"weight": True},
    "sobol": {"sampler": "sobol", "n": 5},
    "injected": {"eps": True},
}


NEED = [False, True, True, False, False, True, True, True, True]


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


@pytest.mark.parametrize("sampler", ["antithetic", "sobol"])
def test_other_offsets_repeat_what_was_recorded(sampler: str) -> None:
    known = set()
    for offsets in ((0, 4), (2**31, 4), (7, 2**29 + 8)):
        given = inputs(sampler=sampler, n=8, offsets=offsets)
        *sums, gradients = backends.sum_of_errors_on_gpu(*given, NEED)
        *expected, exact = backends.sum_of_errors_on_cpu(*given, NEED)
        assert_close([*sums, *gradients], [*expected, *exact])
        known.add(backends.recorded.cache_info().misses)
    assert len(known) == 1
    for offsets, message in {(2**32 - 2, 4): r"exceed 2\*\*32 data", (-1, 4): "datum_offset is -1"}.items():
        with pytest.raises(ValueError, match=message):
            backends.errors_on_gpu(*inputs(sampler=sampler, n=8, offsets=offsets))


def test_more_points_than_there_are() -> None:
    backends.errors_on_gpu(*inputs(sampler="sobol", n=8))
    with pytest.raises(ValueError, match=r"has 2\*\*30 points in all"):
        backends.errors_on_gpu(*inputs(sampler="sobol", n=8, offsets=(0, 2**30 - 4)))


@pytest.fixture
def _unrecorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every call have more launches than are recorded."""
    backends.recorded.cache_clear()
    monkeypatch.setattr(recording, "MOST_LAUNCHES", 2)
    monkeypatch.setattr(TorchInterpreter, "repeat", None)
    yield
    backends.recorded.cache_clear()


@pytest.mark.usefixtures("_unrecorded")
@pytest.mark.parametrize("name", ["iid", "sobol"])
def test_more_launches_than_are_recorded(name: str) -> None:
    given = inputs(**CASES[name], offsets=(3, 5))
    *sums, gradients = backends.sum_of_errors_on_gpu(*given, NEED)
    *expected, exact = backends.sum_of_errors_on_cpu(*given, NEED)
    assert_close([*sums, *gradients], [*expected, *exact])
    test_errors_and_their_gradients()


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
