"""The same computation in eager torch, float64 or float32: what autograd makes of it is what ours is held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mcelbo_kernels.problem import Activation, Array, Problem
from mcelbo_kernels.reference import noise


def torch_activation(activation: Activation, a: Tensor) -> Tensor:
    """Return torch's own activation of that name."""
    name, parameter = activation
    match name:
        case "identity":
            return a * 1.0
        case "leaky_relu":
            return functional.leaky_relu(a, parameter)
        case "elu":
            return functional.elu(a, parameter)
        case "gelu_tanh":
            return functional.gelu(a, approximate="tanh")
        case _:
            return getattr(functional, name)(a)


# Each cell of (y, x) as torch has it, with autograd's derivatives.
TORCH_CELLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared_error": lambda y, x: functional.mse_loss(y, x, reduction="none"),
    "bernoulli": lambda y, x: functional.binary_cross_entropy_with_logits(y, x, reduction="none"),
}


def torch_cell(cell: str, y: Tensor, x: Tensor) -> Tensor:
    """Return t of tensors that broadcast."""
    return TORCH_CELLS[cell](*torch.broadcast_tensors(y, x))


class TorchTwin(NamedTuple):
    """A problem's tensors (leaves) and its errors T (B, n), attached to them."""

    x: Tensor
    weight: Tensor | None
    mu: Tensor
    logvar: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]
    errors: Tensor
    log_ratios: Tensor

    def gradients(self, upstream: Array) -> dict[str, Array]:
        """Return the vector-Jacobian product of T by autograd, by the names that `named` gives them."""
        leaves = named(self)
        product = torch.autograd.grad(
            self.errors,
            list(leaves.values()),
            torch.tensor(upstream, dtype=self.errors.dtype),
            retain_graph=True,
        )
        return {name: gradient.numpy() for name, gradient in zip(leaves, product, strict=True)}


def named(fields: object) -> dict[str, Tensor]:
    """Return the arrays of a TorchTwin or of Gradients by name, Nones left out."""
    flat = {name: getattr(fields, name) for name in ("x", "weight", "mu", "logvar")}
    for index, (weight, bias) in enumerate(fields.layers):
        flat |= {f"weight of layer {index}": weight, f"bias of layer {index}": bias}
    return {name: array for name, array in flat.items() if array is not None}


def torch_twin(problem: Problem, dtype: torch.dtype = torch.float64) -> TorchTwin:
    """Return the problem's errors as a user would write them in eager torch."""

    def leaf(array: Array) -> Tensor:
        return torch.tensor(np.ascontiguousarray(array), dtype=dtype).requires_grad_()

    x, mu, logvar = leaf(problem.x), leaf(problem.mu), leaf(problem.logvar)
    weight = None if problem.weight is None else leaf(problem.weight)
    layers = tuple((leaf(layer.weight), leaf(layer.bias)) for layer in problem.layers)

    eps = torch.tensor(noise(problem.draw, *problem.mu.shape), dtype=dtype)
    z = mu[:, None] + (0.5 * logvar).exp()[:, None] * eps  # (B, n, d)
    y = z
    for layer, (w, b) in zip(problem.layers, layers, strict=True):
        y = torch_activation(layer.activation, functional.linear(y, w, b))
    pixels = torch_cell(problem.cell, y, x[:, None])  # (B, n, m)
    t = (pixels if weight is None else weight[:, None] * pixels).sum(2)

    q = torch.distributions.Normal(mu[:, None], (0.5 * logvar).exp()[:, None])
    r = (torch.distributions.Normal(torch.zeros_like(z), 1.0).log_prob(z) - q.log_prob(z)).sum(2)
    return TorchTwin(x, weight, mu, logvar, layers, t, r)
