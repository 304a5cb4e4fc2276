"""The errors of decoded samples as torch sees them: a kernel on the CPU and on GPUs, plain operations elsewhere."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function

from mcelbo.arguments import as_array
from mcelbo.autograd import has_memory, refuse_second_derivative, scaled
from mcelbo.backends import decoded_errors_on_gpu
from mcelbo.gpu import obstacle
from mcelbo_kernels.cpu.pixels import decoded_errors as decoded_errors_of_arrays
from mcelbo_kernels.numerics import cells


class Reduced(NamedTuple):
    """Errors (B, c) and, where asked for, the gradients of y (B, c, m), x (B, m) and weight (B or 1, m)."""

    errors: Tensor
    y: Tensor | None
    x: Tensor | None
    weight: Tensor | None


def wide(device: torch.device) -> torch.dtype:
    """Return the dtype of long sums: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def reduced(
    cell: str,
    y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    upstream: Tensor | None = None,
    need: tuple[bool, bool, bool] = (False, False, False),
    kernel: bool = True,
) -> Reduced:
    """Return T[b,i] = sum_j w t(y, x), t the cell, and its vector-Jacobian product for y, x and weight as needed.

    The errors and the gradients of x and weight, which are sums, are wide; nothing here is differentiable.
    Without `kernel` only torch operations are used, as tracing needs.
    """
    if kernel and x.device.type == "cpu":
        w, g = (None if tensor is None else as_array(tensor) for tensor in (weight, upstream))
        found, *gradients = decoded_errors_of_arrays(cell, as_array(y), as_array(x), w, g, *need)
        return Reduced(torch.from_numpy(found), *(None if g is None else torch.from_numpy(g) for g in gradients))
    if kernel and x.device.type == "cuda" and obstacle(x.device) is None:
        return Reduced(*decoded_errors_on_gpu(cell, y, x, weight, upstream, need))  # type: ignore[arg-type]
    sums = wide(x.device)
    t, dt_dy, dt_dx = cells.BY_NAME[cell].arrays(y, x.unsqueeze(1), torch)  # (B, c, m)
    u = 1 if upstream is None else upstream.to(y.dtype).unsqueeze(2)

    def weighted(terms: Tensor) -> Tensor:
        # by selection where the weight is 0, because 0 * NaN is NaN
        return terms if weight is None else (weight.unsqueeze(1) * terms).masked_fill(weight.unsqueeze(1) == 0, 0)

    dy = weighted(u * dt_dy) if need[0] else None
    dx = weighted(u * dt_dx).sum(1, dtype=sums) if need[1] else None
    dw = (u * t).sum(1, dtype=sums) if need[2] else None
    if dw is not None and weight is not None and len(weight) == 1:
        dw = dw.sum(0, keepdim=True)
    return Reduced(weighted(t).sum(2, dtype=sums), dy, dx, dw)


def decoded_errors(cell: str, y: Tensor, x: Tensor, weight: Tensor | None, kernel: bool = True) -> Tensor:
    """Return T (B, c) of y (B, c, m), x (B, m) and weight (B or 1, m), wide and differentiable once."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (y, x, weight)):
        return cast(Tensor, _Errors.apply(cell, y, x, weight, kernel))  # type: ignore[no-untyped-call]
    return reduced(cell, y, x, weight, kernel=kernel).errors


class _Errors(Function):
    """T with its derivative; backward reduces again, with the true upstream gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cell: str, y: Tensor, x: Tensor, weight: Tensor | None, kernel: bool) -> Tensor:
        return reduced(cell, y, x, weight, kernel=kernel).errors

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.cell, *tensors, ctx.kernel = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 5
        need = ctx.needs_input_grad[1:4]
        inputs = (upstream, ctx.cell, *ctx.saved_tensors, need, ctx.kernel and has_memory(upstream))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradients = _Gradients.apply(*inputs)  # type: ignore[no-untyped-call]
        else:
            gradients = _Gradients.forward(*inputs)
        return None, *(gradient if needed else None for gradient, needed in zip(gradients, need, strict=True)), None


class _Gradients(Function):
    """The gradients of T in the dtypes of their inputs, empty where nobody asked; differentiated again, it raises."""

    generate_vmap_rule = True
    backward = staticmethod(refuse_second_derivative)

    @staticmethod
    def forward(
        upstream: Tensor,
        cell: str,
        y: Tensor,
        x: Tensor,
        weight: Tensor | None,
        need: tuple[bool, bool, bool],
        kernel: bool,
    ) -> tuple[Tensor, ...]:
        gradients = reduced(cell, y, x, weight, upstream, need, kernel)[1:]
        return tuple(x.new_empty(0) if gradient is None else gradient.to(x.dtype) for gradient in gradients)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


class Known(Function):
    """A value whose gradients are known already, one for each of the inputs."""

    @staticmethod
    def forward(value: Tensor, *inputs_and_gradients: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        none = (None,) * (len(saved) // 2)
        return None, *(none if upstream is None else scaled(upstream, saved)), *none
