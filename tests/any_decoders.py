"""Decoders of every kind, and eager autograd to hold the chunked path to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcelbo.anydecoder import chunks
from mcelbo.arguments import Arguments, prepare
from mcelbo.sampling import draw
from tests.torch_twin import torch_cell

Decoder = Callable[[Tensor], Tensor]

BATCH, SAMPLES, LATENT, IMAGE = 5, 17, 3, (2, 4, 4)
PIXELS = 32
# bytes: one sample of one datum a chunk; ragged in both; all data and some samples; everything in one
BUDGETS = (1, 14_000, 100_000, 2**26)
CUT, WHOLE = BUDGETS[2:]


@contextmanager
def cut_by(budget: int) -> Iterator[int]:
    """Cut calls by this budget; on one thread, as torch's workers would spin between thousands of small operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunks, "BUDGET", budget)
            yield budget
    finally:
        torch.set_num_threads(threads)


class Data(NamedTuple):
    """Leaf tensors of a call."""

    x: Tensor
    mu: Tensor
    logvar: Tensor
    weight: Tensor

    def arguments(self, num_samples: int = SAMPLES, cell: str = "squared_error", **draw: Any) -> Arguments:
        settings = {"seed": 11} | draw
        a = prepare(self.x, self.mu, self.logvar, weight=self.weight, num_samples=num_samples, **settings)
        return replace(a, cell=cell)


def data(dtype: torch.dtype = torch.float64, batch: int = BATCH, shared: bool = False) -> Data:
    g = torch.Generator().manual_seed(1)

    def leaf(*size: int) -> Tensor:
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    x, mu, logvar = leaf(batch, *IMAGE), leaf(batch, LATENT), leaf(batch, LATENT)
    weight = torch.rand((1 if shared else batch, *IMAGE), generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    return Data(x, mu, logvar, weight)


def eager(arguments: Arguments, decoder: Decoder) -> Tensor:
    """Return T (B, n) as a user would write it, from the same noise."""
    a = arguments
    z = a.mu[:, None] + (a.logvar / 2).exp()[:, None] * draw(a, 0, a.num_samples)
    y = decoder(z.flatten(0, 1)).reshape(*z.shape[:2], -1)
    t = torch_cell(a.cell, y, a.x[:, None])
    return (t if a.weight is None else a.weight[:, None] * t).sum(2)


def gradients(total: Tensor, leaves: list[Tensor], **options: bool) -> list[Tensor | None]:
    """Return what backward leaves in .grad: None where nothing arrived."""
    for leaf in leaves:
        leaf.grad = None
    total.backward(**options)
    return [None if leaf.grad is None else leaf.grad.clone() for leaf in leaves]


def assert_close(ours: Tensor | None, theirs: Tensor | None) -> None:
    """Assert agreement in float64 to rounding: sums of up to 1e4 terms of about the size of the largest result."""
    if ours is None or theirs is None:
        assert ours is theirs
        return
    assert ours.dtype == theirs.dtype
    scale = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * scale)


# --- decoders: each function makes one, and the leaves that it depends on beside the call's ---


class Made(NamedTuple):
    decoder: Decoder
    leaves: list[Tensor]


def mlp() -> nn.Sequential:
    layers = (nn.Linear(LATENT, 20), nn.SiLU(), nn.Linear(20, PIXELS), nn.Sigmoid(), nn.Unflatten(1, IMAGE))
    return nn.Sequential(*layers).double()


def of_module(module: nn.Module) -> Made:
    return Made(module, list(module.parameters()))


def flat_mlp(d: Data) -> Made:
    return of_module(mlp()[:-1])


def image_mlp(d: Data) -> Made:
    return of_module(mlp())


def linear(d: Data) -> Made:
    return of_module(nn.Linear(LATENT, PIXELS).double())


def convolutions(d: Data) -> Made:
    layers = (nn.Linear(LATENT, 12), nn.Unflatten(1, (3, 2, 2)), nn.Tanh(), nn.ConvTranspose2d(3, 2, 4, 2, 1))
    return of_module(nn.Sequential(*layers).double())


def without_parameters(d: Data) -> Made:
    return Made(lambda z: z.repeat(1, PIXELS)[:, :PIXELS].sin(), [])


def function_of_a_leaf(d: Data) -> Made:
    w = torch.randn(LATENT, PIXELS, dtype=torch.float64, requires_grad=True)
    return Made(lambda z: (z @ w).tanh(), [w])


def function_of_a_result(d: Data) -> Made:
    w = torch.randn(LATENT, PIXELS, dtype=torch.float64, requires_grad=True)
    scaled = w.exp()
    return Made(lambda z: (z @ scaled).tanh(), [w])


def function_around_a_module(d: Data) -> Made:
    module = mlp()
    return Made(lambda z: 2 * module(z), list(module.parameters()))


def bound_method(d: Data) -> Made:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(PIXELS, 2 * LATENT).double(), mlp()

        def decode(self, z: Tensor, scale: float) -> Tensor:
            return scale * self.decoder(z)

    model = Model()
    return Made(functools.partial(model.decode, scale=2.0), list(model.parameters()))


class Conditional(nn.Module):
    """Decodes with a context that was computed before, outside."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.encoder = mlp(), nn.Linear(PIXELS, PIXELS).double()
        self.context = torch.zeros(())

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z) + self.context


def module_with_a_captured_result(d: Data) -> Made:
    module, outside = Conditional(), torch.randn(PIXELS, dtype=torch.float64, requires_grad=True)
    module.context = outside.exp().reshape(IMAGE)
    return Made(module, [*module.parameters(), outside])


def module_with_a_result_of_its_own_parameters(d: Data) -> Made:
    module = Conditional()
    module.context = module.encoder(d.x.detach().flatten(1)).sum(0).reshape(IMAGE)
    return of_module(module)


def module_that_sees_the_posterior(d: Data) -> Made:
    module = Conditional()
    module.context = d.mu.sum() * d.x.mean(0)
    return of_module(module)


class Partial(nn.Module):
    """Has parameters that are frozen and such that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.unused = mlp(), nn.Linear(2, 2).double()
        self.net[0].requires_grad_(False)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


def frozen_and_unused(d: Data) -> Made:
    return of_module(Partial())


def frozen(d: Data) -> Made:
    return of_module(mlp().requires_grad_(False))


class Tied(nn.Module):
    """Uses one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(PIXELS, LATENT, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        y = z @ self.weight.T
        return y + 0.1 * torch.tanh(y @ self.weight) @ self.weight.T


def tied(d: Data) -> Made:
    return of_module(Tied())


def in_place(d: Data) -> Made:
    return of_module(nn.Sequential(nn.LeakyReLU(inplace=True), *mlp()))


def ignores_its_samples(d: Data) -> Made:
    w = torch.randn(PIXELS, dtype=torch.float64, requires_grad=True)
    return Made(lambda z: w.expand(len(z), PIXELS), [w])


def hooked_parameter(d: Data) -> Made:
    made = image_mlp(d)
    made.leaves[0].register_hook(lambda gradient: gradient**3)
    return made


def hooked_module(d: Data) -> Made:
    module = mlp()
    module[0].register_full_backward_hook(lambda module, before, after: (3 * before[0],))
    return of_module(module)


def checkpointed(d: Data) -> Made:
    module = mlp()
    return Made(lambda z: checkpoint(module, z, use_reentrant=False), list(module.parameters()))


def parametrized(d: Data) -> Made:
    module = mlp()
    nn.utils.parametrizations.weight_norm(module[0])
    return of_module(module)


MAKERS = (
    flat_mlp,
    image_mlp,
    linear,
    convolutions,
    without_parameters,
    function_of_a_leaf,
    function_of_a_result,
    function_around_a_module,
    bound_method,
    module_with_a_captured_result,
    module_with_a_result_of_its_own_parameters,
    module_that_sees_the_posterior,
    frozen_and_unused,
    frozen,
    tied,
    in_place,
    ignores_its_samples,
    hooked_parameter,
    hooked_module,
    checkpointed,
    parametrized,
)
by_maker = pytest.mark.parametrize("make", MAKERS, ids=lambda maker: maker.__name__)


def leaves_of(made: Made, d: Data) -> list[Tensor]:
    return [*(leaf for leaf in made.leaves if leaf.requires_grad), *d]


def again(make: Callable[[Data], Made], d: Data) -> Made:
    """Make the same decoder anew, as backward frees the graph of what it captured."""
    torch.manual_seed(5)
    return make(d)


class Recorder(nn.Module):
    """Notes how many samples it is given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.seen = module, []

    def forward(self, z: Tensor) -> Tensor:
        self.seen.append(len(z))
        return self.module(z)
