"""The workloads, shared by benchmarks and tests: shapes, and the tensors and decoders of these shapes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Workload:
    """One problem to time: its shapes, its decoder's form and the speed-up to reach over the fastest peer."""

    name: str
    batch: int
    latent: int
    pixels: int
    samples: int
    output: str  # "sigmoid" | "identity"
    target: float
    hidden: int | None = None  # a relu layer of this width before the output layer

    @property
    def widths(self) -> tuple[int, ...]:
        """Layer widths, from latent to pixels."""
        between = () if self.hidden is None else (self.hidden,)
        return (self.latent, *between, self.pixels)

    @property
    def cells(self) -> int:
        """Squared errors in the sum: B n m."""
        return self.batch * self.samples * self.pixels

    @property
    def forward_operations(self) -> int:
        """Multiplications and additions of the decoder's matrix products, for the value."""
        products = sum(i * o for i, o in itertools.pairwise(self.widths))
        return 2 * self.batch * self.samples * products

    @property
    def operations(self) -> int:
        """The same for value and gradients: a product each for a layer's output, weight gradient and input gradient."""
        return 3 * self.forward_operations

    @property
    def shape(self) -> str:
        """The shapes in words."""
        hidden = "" if self.hidden is None else f"H {self.hidden} relu, "
        return f"B {self.batch}, d {self.latent}, {hidden}m {self.pixels}, n {self.samples:,}, {self.output}"


WORKLOADS = (
    Workload("seed", 1, 1, 784, 10_000, "sigmoid", 10.0),
    Workload("seed-linear", 1, 1, 784, 10_000, "identity", 40.0),
    Workload("affine", 128, 32, 784, 64, "sigmoid", 3.5),
    Workload("affine-linear", 128, 32, 784, 64, "identity", 15.0),
    Workload("mlp", 128, 32, 784, 16, "sigmoid", 1.5, hidden=512),
    Workload("mlp-linear", 128, 32, 784, 16, "identity", 2.0, hidden=512),
    Workload("once", 128, 20, 784, 1, "sigmoid", 1.3, hidden=400),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A workload with its tensors. `eps`, where given, is the noise to use instead of fresh draws."""

    workload: Workload
    x: Tensor  # (B, m)
    mu: Tensor  # (B, d)
    logvar: Tensor  # (B, d)
    decoder: nn.Sequential
    eps: Tensor | None = None  # (B, n, d)

    @property
    def layers(self) -> list[nn.Linear]:
        """The decoder's affine layers."""
        return [module for module in self.decoder if isinstance(module, nn.Linear)]

    @property
    def inputs(self) -> list[Tensor]:
        """What gradients are taken by: mu, logvar and each layer's weight and bias."""
        return [self.mu, self.logvar, *self.decoder.parameters()]


def decoder(workload: Workload, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Return the workload's decoder with torch's default initialisation, drawn from `seed` alone."""
    modules: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inputs, outputs in itertools.pairwise(workload.widths):
            modules += [nn.Linear(inputs, outputs, dtype=dtype), nn.ReLU()]
    modules.pop()
    if workload.output == "sigmoid":
        modules.append(nn.Sigmoid())
    return nn.Sequential(*modules)


def build(
    workload: Workload,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    inject_noise: bool = False,
    device: torch.device = CPU,
) -> Case:
    """Return the workload's tensors, the same for the same seed: pixels in (0, 1), a posterior of unit scale."""
    generator = torch.Generator().manual_seed(seed)
    batch, latent = workload.batch, workload.latent
    x = torch.rand(batch, workload.pixels, generator=generator, dtype=dtype)
    mu = torch.randn(batch, latent, generator=generator, dtype=dtype)
    logvar = torch.randn(batch, latent, generator=generator, dtype=dtype) / 2 - 1
    eps = None
    if inject_noise:
        eps = torch.randn(batch, workload.samples, latent, generator=generator, dtype=dtype).to(device)
    x, mu, logvar = (tensor.to(device) for tensor in (x, mu, logvar))
    layers = decoder(workload, dtype, seed).to(device)
    return Case(workload, x, mu.requires_grad_(), logvar.requires_grad_(), layers, eps)
