"""The peers, each as a good engineer would write it, behind one small interface.

All compute the mean of (x - D(mu + exp(logvar/2) eps))^2 over a `Case`, with fresh eps in every call or with the case's
own, and its gradients by `Case.inputs`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, mse_loss

from benchmarks.jax_client import JaxRunner
from benchmarks.timing import visit
from benchmarks.workloads import CPU, Case

OWN = "mcelbo"
NAMES = ("eager", "compile", "jax", OWN)
MODES = ("gradients", "value")


class Runner(Protocol):
    """A peer at work on one case."""

    def time(self, mode: str, seconds: float) -> float:
        """Return the median seconds of a call; `mode` is "gradients" (and the value) or "value" alone."""

    def unavailable(self, mode: str) -> str | None:
        """Return why a mode cannot be timed, None where it can."""

    def result(self) -> tuple[Tensor, ...]:
        """Return the value and the gradients in the order of `Case.inputs`."""

    def processes(self) -> list[int]:
        """Return the ids of the processes it runs beside this one."""

    def close(self) -> None:
        """End what it started."""


@dataclass
class TorchRunner:
    """A peer in this process: a differentiable loss, and where that pays another function for the value alone."""

    case: Case
    loss: Callable[[], Tensor]
    value_only: Callable[[], Tensor]

    def gradients(self) -> tuple[Tensor, ...]:
        """Carry out one call with gradients; `autograd.grad` neither zeroes nor accumulates."""
        loss = self.loss()
        return loss, *torch.autograd.grad(loss, self.case.inputs)

    def value(self) -> Tensor:
        """Carry out one call without."""
        with torch.no_grad():
            return self.value_only()

    def time(self, mode: str, seconds: float) -> float:
        """See `Runner`."""
        return visit(self.value if mode == "value" else self.gradients, seconds)

    def unavailable(self, mode: str) -> str | None:
        """See `Runner`."""
        return None

    def result(self) -> tuple[Tensor, ...]:
        """See `Runner`."""
        value, *gradients = self.gradients()
        return value.detach(), *gradients

    def processes(self) -> list[int]:
        """See `Runner`."""
        return []

    def close(self) -> None:
        """See `Runner`."""


def decode(case: Case, parameters: list[Tensor], *, inplace: bool) -> Tensor:
    """Return y (B, n, m), the reconstructions of all samples."""
    mu, logvar, *layers = parameters
    shape = (mu.shape[0], case.workload.samples, mu.shape[1])
    eps = torch.randn(shape, dtype=mu.dtype, device=mu.device) if case.eps is None else case.eps
    h = torch.addcmul(mu[:, None], torch.exp(logvar / 2)[:, None], eps).view(-1, shape[2])  # (B n, d)
    for index in range(0, len(layers), 2):
        h = linear(h, layers[index], layers[index + 1])
        # Both derivatives are functions of the result, and no product needs its output: autograd allows this in place.
        if index + 2 < len(layers):
            h = h.relu_() if inplace else h.relu()
        elif case.workload.output == "sigmoid":
            h = h.sigmoid_() if inplace else h.sigmoid()
    return h.view(*shape[:2], -1)


def eager(case: Case) -> Runner:
    """Run PyTorch as it comes."""

    def loss() -> Tensor:
        y = decode(case, case.inputs, inplace=True)
        # mse_loss keeps y and x for backward and no difference: up to twice as fast as (y - x).square().mean().
        return mse_loss(y, case.x[:, None].expand_as(y))

    def value() -> Tensor:
        y = decode(case, case.inputs, inplace=True)
        return y.sub_(case.x[:, None]).square_().mean()

    return TorchRunner(case, loss, value)


def compiled(case: Case) -> Runner:
    """Run torch.compile with the noise inside the graph; its fusion wants neither in-place nor fused operations."""
    # Each case compiles this code anew, and torch gives up on code that it has compiled too often.
    torch.compiler.reset()

    @torch.compile(dynamic=False, fullgraph=True)
    def function(*parameters: Tensor) -> Tensor:
        y = decode(case, list(parameters), inplace=False)
        return (y - case.x[:, None]).square().mean()

    def loss() -> Tensor:
        return function(*case.inputs)

    return TorchRunner(case, loss, loss)


def mcelbo(case: Case) -> Runner:
    """Call the library through its public door."""
    import mcelbo as library

    def loss() -> Tensor:
        return library.expected_squared_error(
            case.x, case.mu, case.logvar, case.decoder, num_samples=case.workload.samples, eps=case.eps
        )

    return TorchRunner(case, loss, loss)


def unavailable(name: str, jax_python: str | None, device: torch.device = CPU) -> str | None:
    """Return why a peer cannot run here on a device, None where it can."""
    if name == "jax" and device.type != "cpu":
        return "jax is measured on the CPU alone"
    if name == "compile" and device.type != "cpu" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs triton on a GPU"
    if name == "jax" and jax_python is None and importlib.util.find_spec("jax") is None:
        return "jax is not installed here; --jax-python names an environment that has it"
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "cl")
    if name == "compile" and not any(map(shutil.which, compilers)):
        return "torch.compile needs a C++ compiler"
    return None


def start(name: str, case: Case, jax_python: str | None = None) -> Runner:
    """Set a peer to work on a case; it is warm after its first call in each mode."""
    if name == "jax":
        return JaxRunner(case, jax_python)
    starters = {"eager": eager, "compile": compiled, OWN: mcelbo}
    return starters[name](case)
