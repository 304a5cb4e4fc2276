"""What the autograd functions of every path share: they scale known gradients and refuse a second derivative."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Signature
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function


def refuse_second_derivative(ctx: Any, *grad_outputs: Any) -> Any:
    """Serve as the backward of whatever runs within a backward."""
    raise RuntimeError(
        "mcelbo's losses have no second derivative: gradient penalties and Hessians need plain torch operations"
    )


class Bound(NamedTuple):
    """Arguments bound to no names."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apply_defaults(self) -> None:
        """Leave them as they are: none has a default."""


class Positional(Signature):
    """The signature of a function that takes whatever comes."""

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """Return the arguments."""
        return Bound(args, kwargs)


def positional(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Spare a forward, whose arguments are all positional, the search for their names.

    torch reads the signature of a forward and binds the arguments to it in every call, which takes longer than a pass
    over a small problem.
    """
    forward.__signature__ = Positional()  # type: ignore[attr-defined]
    return forward


def has_memory(tensor: Tensor) -> bool:
    """Tell whether a tensor is one that holds numbers: none of a batch that vmap stands for, nor a traced one."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


class Scaled(Function):
    """Gradients times the upstream scalar; the inputs come along so that a second derivative reaches backward."""

    generate_vmap_rule = True
    backward = staticmethod(refuse_second_derivative)

    @staticmethod
    def forward(upstream: Tensor, *inputs_and_gradients: Tensor) -> tuple[Tensor, ...]:
        gradients = inputs_and_gradients[len(inputs_and_gradients) // 2 :]
        if torch.compiler.is_compiling() or not all(map(has_memory, (upstream, *gradients))):
            return tuple(upstream * gradient for gradient in gradients)
        # one launch on a GPU; torch.compile and torch's vmaps know no rule for it
        return tuple(torch._foreach_mul(gradients, upstream))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


def scaled(upstream: Tensor, inputs_and_gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return upstream * gradient for the second half of the tensors, the gradients of the first half."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return tuple(Scaled.apply(upstream, *inputs_and_gradients))  # type: ignore[no-untyped-call]
    # Out of place: with retain_graph the same gradients are scaled again.
    return Scaled.forward(upstream, *inputs_and_gradients)
