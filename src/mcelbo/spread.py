"""How alike the reconstructions of one datum are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mcelbo.anydecoder.chunks import Plan
from mcelbo.anydecoder.reduction import wide
from mcelbo.arguments import prepare
from mcelbo.decoders import Decoder
from mcelbo.moments import Stream


class Spread(NamedTuple):
    """How a datum's reconstructions differ; see `reconstruction_spread`.

    Attributes
    ----------
    mean : Tensor, of x's shape
        The average reconstruction, pixel by pixel.
    deviation : Tensor, of x's shape
        The standard deviation of each pixel over the samples: the root of the mean squared distance from `mean`.
    error : Tensor, shape (B,), float64
        The samples' mean squared error, which is what training minimises.
    error_of_mean : Tensor, shape (B,), float64
        The squared error of the average reconstruction.
    variance : Tensor, shape (B,), float64
        The mean squared distance of the reconstructions from their average: the difference of the two.
    """

    mean: Tensor
    deviation: Tensor
    error: Tensor
    error_of_mean: Tensor
    variance: Tensor


def reconstruction_spread(
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    decoder: Decoder,
    *,
    num_samples: int,
    weight: Tensor | None = None,
    eps: Tensor | None = None,
    sampler: str = "iid",
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    datum_offset: int = 0,
    sample_offset: int = 0,
) -> Spread:
    r"""Tell how alike the reconstructions y_i of a datum are, and what averaging them would hide.

    .. math::

        \frac1n \sum_i \|x - y_i\|^2 = \|x - \bar y\|^2 + \frac1n \sum_i \|y_i - \bar y\|^2, \qquad
        \bar y = \frac1n \sum_i y_i

    holds without error for any decoder and any n. The left side is what `expected_squared_error` returns; a loss of
    the averaged reconstruction would be the first term on the right alone, and leave the posterior's variance free.

    Samples are decoded in chunks, so memory does not grow with n. Nothing here carries gradients.

    Parameters
    ----------
    x, mu, logvar, decoder, num_samples, weight, eps, sampler, seed, generator, datum_offset, sample_offset
        As for `expected_squared_error`. The squared distances are weighted; mean and deviation are not.

    Returns
    -------
    Spread
        A named tuple (mean, deviation, error, error_of_mean, variance).

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what was expected.

    References
    ----------
    Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The American Statistician 37 (1983).

    Examples
    --------
    >>> import torch, mcelbo
    >>> x, mu, logvar = torch.rand(8, 1, 28, 28), torch.zeros(8, 2), torch.zeros(8, 2)
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 784), torch.nn.Sigmoid())
    >>> found = mcelbo.reconstruction_spread(x, mu, logvar, decoder, num_samples=100)
    >>> found.deviation.shape
    torch.Size([8, 1, 28, 28])
    >>> torch.allclose(found.error, found.error_of_mean + found.variance)
    True
    """
    a = prepare(
        x,
        mu,
        logvar,
        num_samples=num_samples,
        weight=weight,
        eps=eps,
        sampler=sampler,
        seed=seed,
        generator=generator,
        datum_offset=datum_offset,
        sample_offset=sample_offset,
    )
    errors: dict[int, Stream] = {}  # by the first of the data that a chunk holds
    pixels: dict[int, Stream] = {}
    with torch.no_grad():
        plan = Plan(a, decoder)
        for chunk in plan:
            decoded = plan.decode(chunk)
            y, start, sums = decoded.y, chunk.rows.start, wide(a.x.device)  # y (b, c, m)
            errors.setdefault(start, Stream()).add(plan.errors(chunk, decoded).mean(1, dtype=sums), chunk.count)
            centre = y.mean(1, dtype=sums)
            pixels.setdefault(start, Stream()).add(centre, chunk.count, (y - centre.unsqueeze(1)).square().sum(1))
        mean = torch.cat([stream.mean for stream in pixels.values()])  # (B, m)
        variance = torch.cat([stream.squares for stream in pixels.values()]) / a.num_samples
        return Spread(
            mean=mean.to(a.x.dtype).reshape(x.shape),
            deviation=variance.sqrt().to(a.x.dtype).reshape(x.shape),
            error=torch.cat([stream.mean for stream in errors.values()]),
            error_of_mean=_weighted((a.x - mean).square(), a.weight),
            variance=_weighted(variance, a.weight),
        )


def _weighted(squares: Tensor, weight: Tensor | None) -> Tensor:
    """Sum over the pixels; a weight of 0 excludes one whatever it holds."""
    return (squares if weight is None else (weight * squares).masked_fill(weight == 0, 0)).sum(1)
