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
from mcelbo import gpu
from mcelbo_kernels._compile import DIRECTORY
from mcelbo_kernels.cpu import present_team

PACKAGES = ("mcelbo", "torch", "numba", "llvmlite", "numpy")
# Sums of some hundred float32 terms, in two orders: an epsilon for each of about a hundred roundings.
TOLERANCE = 100 * torch.finfo(torch.float32).eps
CPU = torch.device("cpu")
NO_GPU = "no NVIDIA GPU that torch can see"


def run() -> int:
    """Print the facts and the results of the checks; return 0 if the fused path works wherever tensors can be."""
    works, verdict = fused_path(CPU)
    works_on_gpus, verdict_on_gpus = fused_path_on_gpus()
    team = present_team()
    installed = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    facts = {
        "versions": f"{installed}, Python {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}, {llvmlite.binding.get_host_cpu_name()}",
        "threads": f"torch {torch.get_num_threads()}, numba {numba.config.NUMBA_NUM_THREADS}, cores {os.cpu_count()}",
        "helpers": team.name if team else "a pool of mcelbo's own",
        "kernel cache": DIRECTORY or "no folder for it can be written: kernels are compiled anew in every process",
        "fused CPU path": verdict,
        "GPUs": names_of_gpus(),
        "CUDA packages": ", ".join(f"{name} {gpu.installed(name) or 'not installed'}" for name in gpu.PACKAGES),
        "fused CUDA path": verdict_on_gpus,
    }
    width = max(map(len, facts)) + 2
    for name, fact in facts.items():
        print(f"{name:<{width}}{fact}")
    return 0 if works and works_on_gpus else 1


def gpus() -> list[torch.device]:
    """Return the NVIDIA GPUs that torch sees."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return []
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def names_of_gpus() -> str:
    """Return in words what torch's CUDA is and which GPUs it sees; without any, what to do if there is a driver."""
    found, toolkit, driver = gpus(), torch.version.cuda, gpu.supported_by_driver()
    if not found:
        seen = (
            "this PyTorch is built without CUDA" if toolkit is None else f"{NO_GPU}, which is built for CUDA {toolkit}"
        )
        if driver is None:
            return seen
        seen += f"; there is an NVIDIA driver, which supports CUDA {driver}"
        if toolkit is None or int(toolkit.split(".")[0]) > int(driver.split(".")[0]):
            seen += ": https://pytorch.org/get-started has a PyTorch for that"
        return seen
    versions = f"torch is built for CUDA {toolkit}, the driver supports {driver}"
    named = (
        f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
        for device in found
        for major, minor in [torch.cuda.get_device_capability(device)]
    )
    return f"{', '.join(named)}; {versions}"


def fused_path_on_gpus() -> tuple[bool, str]:
    """Return whether every GPU gives what plain torch gives, and words; having none is no failure."""
    found = {str(device): fused_path(device) for device in gpus()}
    if not found:
        return True, NO_GPU
    verdicts = (verdict if len(found) == 1 else f"{device} {verdict}" for device, (_, verdict) in found.items())
    return all(works for works, _ in found.values()), "; ".join(verdicts)


def fused_path(device: torch.device) -> tuple[bool, str]:
    """Compare loss and gradients of a small fused decoder with plain torch; return whether they agree, and words."""
    try:
        obstacle = gpu.obstacle(device) if device.type == "cuda" else None
        if obstacle is not None:
            return False, f"MISSING: {obstacle}"
        difference = largest_difference(device)
    except Exception as problem:  # whatever it is, it is the answer that was asked for
        return False, f"FAILS: {type(problem).__name__}: {problem}"
    agrees = difference <= TOLERANCE
    return (
        agrees,
        f"{'works' if agrees else 'WRONG'}: loss and gradients differ from torch's by {difference:.1g}, relative",
    )


def largest_difference(device: torch.device) -> float:
    """Return the largest relative difference of loss and gradients from those of plain operations on a device."""
    generator = torch.Generator().manual_seed(0)
    batch, pixels, latent, samples, seed = 3, 50, 4, 20, 7

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    x, mu, logvar = normal(batch, pixels), normal(batch, latent), normal(batch, latent)
    layer = nn.Linear(latent, pixels, device=device)
    layer.load_state_dict({"weight": normal(pixels, latent), "bias": normal(pixels)})
    decoder = nn.Sequential(layer, nn.Sigmoid())
    path = mcelbo.explain(decoder, x)
    if path.path == "any":
        raise RuntimeError(f"an affine decoder is not fused: {path.reason}")
    leaves = (mu.requires_grad_(), logvar.requires_grad_(), *layer.parameters())
    fused = mcelbo.expected_squared_error(x, mu, logvar, decoder, num_samples=samples, seed=seed)
    eps = mcelbo.noise(seed, batch, samples, latent, device=device)
    y = decoder(mu[:, None] + (logvar / 2).exp()[:, None] * eps)  # (B, n, m)
    plain = (x[:, None] - y).square().mean()
    ours, theirs = ((loss.detach(), *torch.autograd.grad(loss, leaves)) for loss in (fused, plain))
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))
