"""The ways to the errors behind one door: closed form, fused pass, and chunks of samples for any other decoder."""

from __future__ import annotations

from torch import Tensor

from mcelbo import anydecoder, exact, ops
from mcelbo.arguments import Arguments, Sums
from mcelbo.decoders import Decoder, Description, choose, parameters


def sum_of_errors(arguments: Arguments, decoder: Decoder) -> Sums:
    """Return sum_b mean_i T[b, i], differentiable, and the moments of each datum."""
    if arguments.sampler == exact.EXACT:
        return exact.sum_of_errors(arguments, decoder)
    fused = _fused(arguments, decoder)
    return anydecoder.sum_of_errors(arguments, decoder) if fused is None else ops.sum_of_errors(arguments, fused)


def errors(arguments: Arguments, decoder: Decoder) -> Tensor:
    """Return T (B, n), differentiable."""
    if arguments.sampler == exact.EXACT:
        raise ValueError("reduction is 'none' and sampler 'exact': an expectation has no samples, so sum or average it")
    fused = _fused(arguments, decoder)
    return anydecoder.errors(arguments, decoder) if fused is None else ops.errors(arguments, fused)


def _fused(arguments: Arguments, decoder: Decoder) -> Description | None:
    """Return the layers of a decoder that is fused, None for any other; raise if they do not go with the arguments."""
    path = choose(decoder, arguments.x.device, arguments.cell)
    if path.fused or path.description is None:
        return path.description
    parameters(path.description, arguments)
    return None
