"""The fused path: pure torch ops over the kernels, and the autograd functions that call them.

An op takes tensors, an explicit seed tensor and plain settings, and returns values and gradients; it has a schema, a
fake and a vmap rule but no derivative of its own, because a registered derivative does not work under torch.func. The
derivative is that of the autograd function around the op.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function

from mcelbo import backends
from mcelbo.arguments import Arguments, Sums, refuse_forward_mode
from mcelbo.autograd import positional, refuse_second_derivative, scaled
from mcelbo.backends import cut
from mcelbo.decoders import Description, parameters

_DATA = "Tensor x, Tensor mu, Tensor logvar, Tensor? weight, Tensor? eps"
_SETTINGS = (
    "Tensor seed, str cell, str[] activations, float[] activation_parameters, str sampler, "
    "SymInt num_samples, SymInt datum_offset, SymInt sample_offset"
)
_library: Any = torch.library.Library("mcelbo", "FRAGMENT")  # type: ignore[no-untyped-call]
# `need` and the gradients go with x, mu, logvar, weight, eps, *parameters; a gradient that is not needed is empty.
_library.define(
    f"sum_of_errors({_DATA}, Tensor[] parameters, {_SETTINGS}, bool[] need)"
    " -> (Tensor total, Tensor mean, Tensor squares, Tensor[] gradients)"
)
_library.define(f"errors({_DATA}, Tensor[] parameters, {_SETTINGS}) -> Tensor")
# No list of tensors in or out, for which torch cannot batch the upstream gradients (is_grads_batched): the parameters
# come end to end, `widths` being those of the layers from d to m, and so do the needed gradients.
_library.define(
    f"error_gradients(Tensor upstream, {_DATA}, Tensor parameters, SymInt[] widths, {_SETTINGS}, bool[] need) -> Tensor"
)


class Settings(NamedTuple):
    """What the ops take beside tensors, in the order of their schema."""

    cell: str
    activations: list[str]
    activation_parameters: list[float]
    sampler: str
    num_samples: int
    datum_offset: int
    sample_offset: int


_library.impl("sum_of_errors", backends.sum_of_errors_on_cpu, "CPU")
_library.impl("errors", backends.errors_on_cpu, "CPU")
_library.impl("error_gradients", backends.error_gradients_on_cpu, "CPU")
_library.impl("sum_of_errors", backends.sum_of_errors_on_gpu, "CUDA")
_library.impl("errors", backends.errors_on_gpu, "CUDA")
_library.impl("error_gradients", backends.error_gradients_on_gpu, "CUDA")


def _fake_gradients(need: list[bool], x: Tensor, *inputs: Any) -> list[Tensor]:
    mu, logvar, weight, eps, tensors = inputs[:5]
    like = (x, mu, logvar, weight, eps, *tensors)
    return [x.new_empty(t.shape if needed else 0) for t, needed in zip(like, need, strict=True)]


def _fake_sum_of_errors(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    mean, squares = (x.new_empty(x.shape[0], dtype=torch.float64) for _ in range(2))
    return x.new_empty(()), mean, squares, _fake_gradients(inputs[-1], x, *inputs)


def _fake_errors(x: Tensor, *inputs: Any) -> Tensor:
    num_samples = inputs[-3]
    return x.new_empty(x.shape[0], num_samples)


def _fake_error_gradients(upstream: Tensor, x: Tensor, *inputs: Any) -> Tensor:
    mu, logvar, weight, eps, _parameters, widths = inputs[:6]
    layers = [size for before, after in pairwise(widths) for size in (after * before, after)]
    sizes = [0 if tensor is None else tensor.numel() for tensor in (x, mu, logvar, weight, eps)] + layers
    return x.new_empty(sum(size for size, needed in zip(sizes, inputs[-1], strict=True) if needed))


torch.library.register_fake("mcelbo::sum_of_errors", _fake_sum_of_errors, lib=_library)
torch.library.register_fake("mcelbo::errors", _fake_errors, lib=_library)
torch.library.register_fake("mcelbo::error_gradients", _fake_error_gradients, lib=_library)


def _register_vmap(name: str) -> None:
    """Run the op once for each entry of a mapped axis: its parallelism is over the data and samples within."""

    def rule(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        def entry(value: Any, axis: Any, index: int) -> Any:
            if isinstance(axis, (list, tuple)):
                return [entry(v, a, index) for v, a in zip(value, axis, strict=True)]
            return value if axis is None else value.select(axis, index)

        def stack(values: list[Any]) -> Any:
            if isinstance(values[0], Tensor):
                return torch.stack(values)
            return type(values[0])(stack(list(parts)) for parts in zip(*values, strict=True))

        def axes(value: Any) -> Any:
            return 0 if isinstance(value, Tensor) else type(value)(axes(part) for part in value)

        op = getattr(torch.ops.mcelbo, name)
        runs = [op(*(entry(v, a, i) for v, a in zip(inputs, in_dims, strict=True))) for i in range(info.batch_size)]
        return stack(runs), axes(runs[0])

    torch.library.register_vmap(f"mcelbo::{name}", rule, lib=_library)


for _name in ("sum_of_errors", "errors", "error_gradients"):
    _register_vmap(_name)


class _SumOfErrors(Function):
    """sum_b mean_i T[b, i] and its gradients in one pass."""

    generate_vmap_rule = True

    @staticmethod
    @positional
    def forward(seed: Tensor, need: list[bool], settings: Settings, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        total, mean, squares, gradients = torch.ops.mcelbo.sum_of_errors(
            *tensors[:5], list(tensors[5:]), seed, *settings, need
        )
        return total, mean, squares, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _seed, need, _settings, *tensors = inputs
        _total, mean, squares, *gradients = output
        ctx.need = need
        ctx.mark_non_differentiable(mean, squares, *gradients)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*_needed(tensors, need), *_needed(gradients, need))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * (3 + len(ctx.need))
        found = iter(scaled(upstream, ctx.saved_tensors))
        return None, None, None, *(next(found) if needed else None for needed in ctx.need)


class _ErrorGradients(Function):
    """The vector-Jacobian product of the errors, which draws the same noise again."""

    generate_vmap_rule = True
    backward = staticmethod(refuse_second_derivative)

    @staticmethod
    @positional
    def forward(
        upstream: Tensor, seed: Tensor, need: list[bool], settings: Settings, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        data, parameters = tensors[:5], cast(tuple[Tensor, ...], tensors[5:])
        flat = torch.cat([parameter.flatten() for parameter in parameters])
        widths = [parameters[0].shape[1], *(bias.shape[0] for bias in parameters[1::2])]
        gradients = torch.ops.mcelbo.error_gradients(upstream, *data, flat, widths, seed, *settings, need)
        return tuple(cut(gradients, [tensor.shape for tensor in _needed(tensors, need)]))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


class _Errors(Function):
    """The errors T (B, n)."""

    generate_vmap_rule = True

    @staticmethod
    @positional
    def forward(seed: Tensor, need: list[bool], settings: Settings, *tensors: Tensor | None) -> Tensor:
        errors: Tensor = torch.ops.mcelbo.errors(*tensors[:5], list(tensors[5:]), seed, *settings)
        return errors

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        seed, ctx.need, ctx.settings, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(seed, *tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * (3 + len(ctx.need))
        seed, *tensors = ctx.saved_tensors
        inputs = (upstream, seed, ctx.need, ctx.settings, *tensors)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradients = _ErrorGradients.apply(*inputs)  # type: ignore[no-untyped-call]
        else:
            gradients = _ErrorGradients.forward(*inputs)
        found = iter(gradients)
        return None, None, None, *(next(found) if needed else None for needed in ctx.need)


def _needed(tensors: Sequence[Tensor | None], need: list[bool]) -> list[Tensor]:
    return [cast(Tensor, tensor) for tensor, needed in zip(tensors, need, strict=True) if needed]


def _inputs(arguments: Arguments, description: Description) -> tuple[list[bool], Settings, list[Tensor | None]]:
    """Return which gradients are asked for, the ops' settings, and their tensors."""
    a = arguments
    tensors = [a.x, a.mu, a.logvar, a.weight, a.eps, *parameters(description, arguments)]
    refuse_forward_mode(tensors)
    need = [tensor is not None and torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
    settings = Settings(
        a.cell,
        [layer.activation.name for layer in description.layers],
        [layer.activation.parameter for layer in description.layers],
        a.sampler,
        a.num_samples,
        a.datum_offset,
        a.sample_offset,
    )
    return need, settings, tensors


def sum_of_errors(arguments: Arguments, description: Description) -> Sums:
    """Return sum_b mean_i T[b, i], whose gradients come from the same pass, and the moments of each datum."""
    need, settings, tensors = _inputs(arguments, description)
    if not any(need):
        # Not through the Function: a compiled call asserts that something in it requires a gradient.
        op = torch.ops.mcelbo.sum_of_errors
        return Sums(*op(*tensors[:5], tensors[5:], arguments.seed, *settings, need)[:3])
    return Sums(*_SumOfErrors.apply(arguments.seed, need, settings, *tensors)[:3])  # type: ignore[no-untyped-call]


def errors(arguments: Arguments, description: Description) -> Tensor:
    """Return T (B, n)."""
    need, settings, tensors = _inputs(arguments, description)
    if not any(need):
        return cast(Tensor, torch.ops.mcelbo.errors(*tensors[:5], tensors[5:], arguments.seed, *settings))
    return cast(Tensor, _Errors.apply(arguments.seed, need, settings, *tensors))  # type: ignore[no-untyped-call]
