"""How a call is cut into chunks of samples, and how a decoder is run on one."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mcelbo.anydecoder.graph import Survey, now, survey
from mcelbo.anydecoder.reduction import decoded_errors
from mcelbo.arguments import HALF, Arguments, refuse_forward_mode
from mcelbo.decoders import Decoder
from mcelbo.sampling import draw

# Bytes that the tensors of a chunk may take together. Chunks are cut by this and by the problem, never by the threads.
BUDGET = 64 * 2**20
# What a decoder's graph is taken to hold for each sample, in multiples of its input and output. Where there is more
# than one chunk the first takes this share of the budget, and shows how much more the graph really holds.
ASSUMED = 8
FIRST_SHARE = 1 / 8
MIXED = (
    "the decoder normalises samples by the statistics of those beside them, which are here the samples of a chunk: "
    "pass a module with BatchNorm layers itself, not a function that calls it, and it decodes all samples at once"
)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Samples first to first + count of the data in `rows`, whose arguments `arguments` are."""

    arguments: Arguments
    rows: slice
    first: int
    count: int
    whole: bool  # whether it is the only one

    @property
    def leads(self) -> bool:
        """Whether it is the first of its call."""
        return self.first == 0 and self.rows.start == 0

    def detached(self) -> Chunk:
        """Return the chunk cut off from the graph behind its arguments."""
        a = self.arguments
        mu, logvar = (t.detach().requires_grad_(t.requires_grad) for t in (a.mu, a.logvar))
        return replace(self, arguments=replace(a, mu=mu, logvar=logvar))


class Decoded(NamedTuple):
    """What the decoder made of the samples z of a chunk."""

    spread: Tensor  # (b, c, d): z - mu = exp(logvar/2) eps
    y: Tensor  # (b, c, m)
    source: GradientEdge | None  # where z enters the graph of y, if z requires a gradient
    survey: Survey | None  # of that graph, where there may be several chunks


class Plan:
    """The chunks of a call, cut as they come: the first one tells how much the decoder's graph holds for a sample."""

    def __init__(self, arguments: Arguments, decoder: Decoder) -> None:
        self.arguments = arguments
        self.decoder = decoder
        # Traced by the compiler or transformed by torch.func, neither kernels nor checkpoints nor graphs can be seen.
        self.traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        self.differentiable = torch.is_grad_enabled() and not self.traced
        self._module = _module(decoder)
        batch, (pixels, latent) = len(arguments.x), (arguments.x.shape[1], arguments.mu.shape[1])
        self._indivisible = batch == 0 or (self._module is not None and _samples_interact(self._module))
        itemsize = arguments.x.dtype.itemsize
        self._size = 2 * (latent + pixels) * itemsize  # z and spread, y and its gradient
        self._graph_size = ASSUMED * (latent + pixels) * itemsize

    def __iter__(self) -> Iterator[Chunk]:
        batch, n = len(self.arguments.x), self.arguments.num_samples
        if self._indivisible or batch * n <= self._affordable(BUDGET):
            yield Chunk(self.arguments, slice(0, batch), 0, n, whole=True)
            return
        budget = BUDGET * FIRST_SHARE if self.differentiable else BUDGET
        start = 0
        while start < batch:
            rest = batch - start
            rows = rest if rest <= self._affordable(BUDGET) else max(1, self._affordable(budget))
            stop = start + rows
            part = self.arguments if rows == batch else _slice(self.arguments, slice(start, stop))
            first = 0
            while first < n:
                count = min(n - first, max(1, self._affordable(budget) // rows))
                yield Chunk(part, slice(start, stop), first, count, whole=False)
                first += count
                budget = BUDGET
            start = stop

    def _affordable(self, budget: float) -> int:
        """Return how many samples a budget of bytes is enough for."""
        return int(budget // max(1, self._size + self._graph_size))

    def decode(self, chunk: Chunk) -> Decoded:
        """Draw and decode the samples of a chunk."""
        a = chunk.arguments
        spread = (a.logvar / 2).exp().unsqueeze(1) * draw(a, chunk.first, chunk.count)
        z = a.mu.unsqueeze(1) + spread
        inspected = self.differentiable and not chunk.whole
        since = now() if inspected else 0
        # Taken before the decoder runs, which may change z in place.
        source = get_gradient_edge(z) if inspected and z.requires_grad else None
        samples = z.flatten(0, 1)
        with _no_autocast_cache() if inspected else contextlib.nullcontext():
            output = self.decoder(samples.to(_expected_dtype(self._module, a.x)))
        self._check(output, len(samples))
        y = output.to(a.x.dtype).reshape(*z.shape[:2], a.x.shape[1])
        if not self.traced:
            refuse_forward_mode((y, a.x, a.weight))
        if not inspected:
            return Decoded(spread, y, source, None)
        found = survey(y, len(samples), None if source is None else source.node, since)
        self._graph_size = max(self._graph_size, found.size // max(1, len(samples)))
        if found.mixed and chunk.leads:
            warnings.warn(MIXED, stacklevel=2)
        return Decoded(spread, y, source, found)

    def _check(self, y: object, samples: int) -> None:
        """Raise unless the decoder's output is (N, m) or (N, *pixel_shape) on the device of x."""
        x, pixel_shape = self.arguments.x, tuple(self.arguments.pixel_shape)
        shape, pixels = (len(x), *pixel_shape), x.shape[1]
        if not isinstance(y, Tensor):
            raise TypeError(f"decoder returns {type(y).__qualname__}: expected a tensor (N, {pixels})")
        if y.layout is not torch.strided:
            raise TypeError(f"decoder returns a sparse tensor ({y.layout}): expected a dense one")
        if y.is_complex():
            raise TypeError(f"decoder returns {y.dtype}: expected {x.dtype}")
        if y.device != x.device:
            raise ValueError(f"decoder returns a tensor on {y.device} and x is on {x.device}: move both to one device")
        got = tuple(y.shape)
        if got in ((samples, pixels), (samples, *pixel_shape)):
            return
        if got[:1] == (samples,) and y.shape[1:].numel() != pixels:
            raise ValueError(
                f"decoder returns {y.shape[1:].numel()} pixels but x has shape {shape}, {pixels} pixels per datum"
            )
        expected = " or ".join(dict.fromkeys(str((samples, *tail)) for tail in ((pixels,), pixel_shape)))
        raise ValueError(f"decoder returns shape {got} for {samples} samples: expected {expected}")

    def errors(self, chunk: Chunk, decoded: Decoded) -> Tensor:
        """Return T (b, c) of a decoded chunk, wide and differentiable."""
        a = chunk.arguments
        return decoded_errors(a.cell, decoded.y, a.x, a.weight, kernel=not self.traced)

    def replayed_errors(self, chunk: Chunk) -> Tensor:
        """Return T (b, c) of a chunk of which nothing is kept: it is decoded again in backward."""
        before = _state(self._module, chunk.arguments)

        def errors(_: Tensor) -> Tensor:
            if not _same(before, _state(self._module, chunk.arguments)):
                raise RuntimeError(
                    "the decoder's parameters or the loss's arguments were replaced or modified between forward and "
                    "backward, which decodes the samples again: call backward first"
                )
            return self.errors(chunk, self.decode(replace(chunk, whole=True)))

        # The tensor tells checkpoint the device whose random state it has to keep.
        return cast(Tensor, checkpoint(errors, chunk.arguments.mu, use_reentrant=False))


def _slice(arguments: Arguments, rows: slice) -> Arguments:
    """Return the arguments of some data of the batch, whose noise is that which they have in the batch."""
    weight, eps = arguments.weight, arguments.eps
    return replace(
        arguments,
        x=arguments.x[rows],
        mu=arguments.mu[rows],
        logvar=arguments.logvar[rows],
        weight=weight if weight is None or len(weight) == 1 else weight[rows],
        eps=None if eps is None else eps[rows],
        datum_offset=arguments.datum_offset + rows.start,
    )


def _module(decoder: Decoder) -> nn.Module | None:
    """Return the module that is called, also by one of its methods, or None where it cannot be known."""
    while isinstance(decoder, functools.partial):
        decoder = decoder.func
    owner = decoder.__self__ if inspect.ismethod(decoder) else decoder
    return owner if isinstance(owner, nn.Module) else None


def _samples_interact(module: nn.Module) -> bool:
    """Whether a sample's decoding depends on the samples beside it: batch norm by the statistics of the batch."""
    return any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in module.modules())


def _expected_dtype(module: nn.Module | None, x: Tensor) -> torch.dtype:
    """Return half precision for a module that is all in it, outside of autocast, else the dtype of x."""
    if module is None or torch.is_autocast_enabled(x.device.type):
        return x.dtype
    dtypes = {p.dtype for p in module.parameters() if p.dtype.is_floating_point}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= set(HALF) else x.dtype


@contextlib.contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Give each chunk its own casts of the weights: a cached one would be a part of every chunk's graph."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


State = list[tuple[Tensor, int]]


def _state(module: nn.Module | None, arguments: Arguments) -> State:
    """Return the tensors that samples are decoded from, with the versions of those that decoding leaves as they are."""
    a = arguments
    given = [t for t in (a.x, a.mu, a.logvar, a.weight, a.eps, a.seed) if t is not None]
    parameters, buffers = ([], []) if module is None else (list(module.parameters()), list(module.buffers()))
    versions = [(t, 0 if t.is_inference() else t._version) for t in (*given, *parameters)]
    return versions + [(buffer, 0) for buffer in buffers]


def _same(before: State, after: State) -> bool:
    """Whether both hold the same tensors in the same versions."""
    pairs = zip(before, after, strict=False)
    return len(before) == len(after) and all(a is b and v == w for (a, v), (b, w) in pairs)
