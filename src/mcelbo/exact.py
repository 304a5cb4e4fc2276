"""The expectation itself, where it has a closed form: one affine layer with identity output needs no samples."""

from __future__ import annotations

import torch
from torch import Tensor

from mcelbo.arguments import Arguments, Sums
from mcelbo.decoders import Decoder, Unfusable, choose, describe, parameters

EXACT = "exact"


def sum_of_errors(arguments: Arguments, decoder: Decoder) -> Sums:
    """Return sum_b E[T_b], E[T_b] = sum_j w_bj r_bj^2 + sum_k sigma_bk^2 sum_j w_bj W_jk^2 with r = x - W mu - c.

    It consists of plain torch operations, so it has derivatives of every order. The deviations of T_b are those of no
    sample: 0.
    """
    a = arguments
    # for what it refuses: plain operations ask for none of a device's kernels
    choose(decoder, torch.device("cpu"), a.cell)
    found = describe(decoder)
    if isinstance(found, Unfusable):
        raise ValueError(f"sampler='exact' takes one affine layer with identity output: {found.reason}")
    if a.cell != "squared_error":
        raise ValueError("sampler='exact' takes squared errors, those of a Gaussian likelihood")
    last = found.layers[-1].activation.name
    if len(found.layers) > 1 or last != "identity":
        came = f"{len(found.layers)} layers, the last with {last} output"
        raise ValueError(f"sampler='exact' takes one affine layer with identity output, and the decoder has {came}")
    with torch.autocast(a.x.device.type, enabled=False):
        weight, bias = parameters(found, a)
        error = _expected(a, weight, bias)
    mean = error.detach().double()
    return Sums(error.sum(), mean, torch.zeros_like(mean))


def _expected(arguments: Arguments, weight: Tensor, bias: Tensor) -> Tensor:
    """Return E[T_b], (B,)."""
    a, square = arguments, weight.square()
    residual = a.x - torch.addmm(bias, a.mu, weight.T)  # (B, m)
    if a.weight is None:
        return residual.square().sum(1) + a.logvar.exp() @ square.sum(0)
    # a weight of 0 excludes the pixel whatever it holds
    residual = residual.masked_fill((a.weight == 0) & ~residual.isfinite(), 0.0)
    return (a.weight * residual.square()).sum(1) + (a.logvar.exp() * (a.weight @ square)).sum(1)
