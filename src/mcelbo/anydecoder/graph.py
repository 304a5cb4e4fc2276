"""What a decoder's autograd graph tells: which tensors it depends on, whose graph it is, and how large it is."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

# Their backward needs a true .backward(), or is a hook of the user's that expects the true upstream gradient.
INSEPARABLE = ("CheckpointFunctionBackward", "BackwardHookFunctionBackward")
LEAF = "torch::autograd::AccumulateGrad"


class Survey(NamedTuple):
    """What was found in the graph of a decoder's output.

    Attributes
    ----------
    leaves : tuple of Tensor
        The leaf tensors that require a gradient: the decoder's parameters, and what else it depends on.
    separable : bool
        Whether the graph can be run backward at once, apart from the caller's: it was built wholly within the call.
    size : int
        Bytes of all results of one row for each sample.
    mixed : bool
        Whether samples were normalised by the statistics of those beside them.
    """

    leaves: tuple[Tensor, ...]
    separable: bool
    size: int
    mixed: bool


def now() -> int:
    """Return a sequence number that is greater than that of every node built before, and less than of those after."""
    with torch.enable_grad():
        return _number(get_gradient_edge(torch.zeros((), device="cpu", requires_grad=True).clone()).node)


def survey(y: Tensor, samples: int, source: Node | None, since: int) -> Survey:
    """Walk the graph of y down to `source`, the node of its samples; nodes numbered below `since` are the caller's."""
    if not y.requires_grad:
        return Survey((), True, 0, False)
    leaves, separable, size, mixed = [], True, 0, False
    for node in _behind([get_gradient_edge(y).node], source):
        if node.name() == LEAF:
            leaf: Tensor = node.variable  # type: ignore[attr-defined]
            leaves.append(leaf)
            # A hook would run on the gradient of each chunk, and then again on their sum.
            separable &= not leaf._backward_hooks
        elif _number(node) < since or node.name() in INSEPARABLE:
            separable = False
        of_samples = [
            output
            for output in getattr(node, "_input_metadata", ())
            if len(output.shape) > 1 and output.shape[0] == samples
        ]
        size += sum(prod(output.shape) * output.dtype.itemsize for output in of_samples)
        # with several rows, because instance normalisation is batch normalisation of a single one
        if "BatchNormBackward" in node.name() and samples > 1 and of_samples:
            mixed |= bool(getattr(node, "_saved_training", False))
    return Survey(tuple(leaves), separable, size, mixed)


def reaches(source: Node, leaves: Iterable[Tensor]) -> bool:
    """Whether one of the leaves is behind `source`, as when encoder and decoder share weights."""
    wanted = {id(leaf) for leaf in leaves}
    return any(node.name() == LEAF and id(node.variable) in wanted for node in _behind([source], None))  # type: ignore[attr-defined]


def _behind(stack: list[Node], end: Node | None) -> Iterable[Node]:
    """Yield every node that is reached from those on the stack without passing through `end`."""
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for previous, _ in node.next_functions:
            if previous is not None and previous is not end and previous not in seen:
                seen.add(previous)
                stack.append(previous)


def _number(node: Node) -> int:
    """Return the place of a node in the order of their creation; leaves come last of all."""
    number: int = node._sequence_nr()
    return number
