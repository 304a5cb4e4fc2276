"""The two ways to the squared errors behind one door: the fused pass, and chunks of samples for any other decoder."""

from __future__ import annotations

from torch import Tensor

from mcelbo import anydecoder, ops
from mcelbo.arguments import Arguments, Sums
from mcelbo.decoders import Decoder, choose


def sum_of_errors(arguments: Arguments, decoder: Decoder) -> Sums:
    """Return sum_b mean_i T[b, i], differentiable, and the moments of each datum."""
    path = choose(decoder, arguments.x.device)
    if path.description is None:
        return anydecoder.sum_of_errors(arguments, decoder)
    return ops.sum_of_errors(arguments, path.description)


def errors(arguments: Arguments, decoder: Decoder) -> Tensor:
    """Return T (B, n), differentiable."""
    path = choose(decoder, arguments.x.device)
    if path.description is None:
        return anydecoder.errors(arguments, decoder)
    return ops.errors(arguments, path.description)
