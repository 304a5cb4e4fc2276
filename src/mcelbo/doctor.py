"""`mcelbo doctor`: what is installed here, and whether the fused path gives what plain torch gives."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import llvmlite.binding
import numba
import torch
from torch import nn

import mcelbo
from mcelbo_kernels._compile import DIRECTORY
from mcelbo_kernels.cpu import present_team

PACKAGES = ("mcelbo", "torch", "numba", "llvmlite", "numpy")
# Sums of some hundred float32 terms, in two orders: an epsilon for each of about a hundred roundings.
TOLERANCE = 100 * torch.finfo(torch.float32).eps


def run() -> int:
    """Print the facts and the result of the check; return 0 if the fused path works."""
    works, verdict = fused_path()
    team = present_team()
    installed = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    facts = {
        "versions": f"{installed}, Python {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}, {llvmlite.binding.get_host_cpu_name()}",
        "threads": f"torch {torch.get_num_threads()}, numba {numba.config.NUMBA_NUM_THREADS}, cores {os.cpu_count()}",
        "helpers": team.name if team else "a pool of mcelbo's own",
        "kernel cache": DIRECTORY or "no folder for it can be written: kernels are compiled anew in every process",
        "fused CPU path": verdict,
    }
    width = max(map(len, facts)) + 2
    for name, fact in facts.items():
        print(f"{name:<{width}}{fact}")
    return 0 if works else 1


def fused_path() -> tuple[bool, str]:
    """Compare loss and gradients of a small fused decoder with plain torch; return whether they agree, and words."""
    try:
        difference = largest_difference()
    except Exception as problem:  # whatever it is, it is the answer that was asked for
        return False, f"FAILS: {type(problem).__name__}: {problem}"
    agrees = difference <= TOLERANCE
    return (
        agrees,
        f"{'works' if agrees else 'WRONG'}: loss and gradients differ from torch's by {difference:.1g}, relative",
    )


def largest_difference() -> float:
    """Return the largest relative difference of loss and gradients from those of plain torch operations."""
    generator = torch.Generator().manual_seed(0)
    batch, pixels, latent, samples, seed = 3, 50, 4, 20, 7

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, mu, logvar = normal(batch, pixels), normal(batch, latent), normal(batch, latent)
    layer = nn.Linear(latent, pixels)
    layer.load_state_dict({"weight": normal(pixels, latent), "bias": normal(pixels)})
    decoder = nn.Sequential(layer, nn.Sigmoid())
    path = mcelbo.explain(decoder, x)
    if path.path == "any":
        raise RuntimeError(f"an affine decoder is not fused: {path.reason}")
    leaves = (mu.requires_grad_(), logvar.requires_grad_(), *layer.parameters())
    fused = mcelbo.expected_squared_error(x, mu, logvar, decoder, num_samples=samples, seed=seed)
    eps = mcelbo.noise(seed, batch, samples, latent)
    y = decoder(mu[:, None] + (logvar / 2).exp()[:, None] * eps)  # (B, n, m)
    plain = (x[:, None] - y).square().mean()
    ours, theirs = ((loss.detach(), *torch.autograd.grad(loss, leaves)) for loss in (fused, plain))
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))
