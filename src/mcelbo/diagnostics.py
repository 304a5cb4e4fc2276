"""How many samples are enough, for the value and for its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcelbo.anydecoder.graph import survey
from mcelbo.anydecoder.reduction import wide
from mcelbo.arguments import Arguments, as_integer, prepare
from mcelbo.decoders import Decoder
from mcelbo.moments import Stream
from mcelbo.paths import sum_of_errors

Column = NDArray[np.float64]


class Enough(NamedTuple):
    """Samples per datum that bring each relative error down to what was asked for; see `Study.enough`."""

    value: float
    posterior_gradient: float
    decoder_gradient: float


@dataclass(frozen=True, eq=False)
class Study:
    """What `study` found: one entry for each number of samples. It prints as a table.

    Attributes
    ----------
    num_samples : ndarray of int
        The numbers n of samples per datum.
    value : ndarray
        The estimate that one call with n samples gives: the squared error per pixel.
    standard_error : ndarray
        Its standard error, in the same unit.
    posterior_gradient : ndarray
        The standard deviation of the gradient by mu and logvar, relative to the gradient's norm.
    decoder_gradient : ndarray
        The same of the gradient by all that the decoder depends on; NaN where that is nothing.
    replications : int
        The number of independent calls behind every entry.
    """

    num_samples: NDArray[np.int64]
    value: Column
    standard_error: Column
    posterior_gradient: Column
    decoder_gradient: Column
    replications: int

    @property
    def relative_error(self) -> Column:
        """The standard error over the value with the most samples, which is the best one known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            relative: Column = self.standard_error / self.value[np.argmax(self.num_samples)]
        return relative

    def enough(self, relative: float) -> Enough:
        r"""Return how many samples per datum bring each relative error down to `relative`.

        .. math:: n' = \left\lceil n \, (e_n / e)^2 \right\rceil

        from the most samples n in the study, their relative errors e_n and the one that is asked for, e.

        Parameters
        ----------
        relative : float
            Greater than 0; 0.01 stands for one per cent.

        Returns
        -------
        Enough
            A named tuple (value, posterior_gradient, decoder_gradient) of whole numbers, at least 1, as floats;
            infinite or NaN where the error is.

        Raises
        ------
        ValueError
            If `relative` is not greater than 0.

        Examples
        --------
        >>> import torch, mcelbo
        >>> x, mu, logvar = torch.rand(8, 64), torch.zeros(8, 2), torch.zeros(8, 2)
        >>> found = mcelbo.study(x, mu, logvar, torch.nn.Linear(2, 64), num_samples=(4, 16))
        >>> n = found.enough(0.01).value
        """
        if not relative > 0:
            raise ValueError(f"relative is {relative}: expected a number greater than 0")
        most = int(np.argmax(self.num_samples))
        n = float(self.num_samples[most])
        errors = (self.relative_error[most], self.posterior_gradient[most], self.decoder_gradient[most])
        return Enough(*(float(np.maximum(1.0, np.ceil(n * (error / relative) ** 2))) for error in errors))

    def __str__(self) -> str:
        head = ("samples", "squared error", "standard error", "relative", "posterior grad.", "decoder grad.")
        errors = (self.relative_error, self.posterior_gradient, self.decoder_gradient)
        rows: list[tuple[str, ...]] = [head]
        for index, n in enumerate(self.num_samples):
            shares = ("-" if math.isnan(error[index]) else f"{100 * error[index]:.3g}%" for error in errors)
            rows.append((f"{n:,}", f"{self.value[index]:.6g}", f"{self.standard_error[index]:.2g}", *shares))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def study(
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    decoder: Decoder,
    *,
    num_samples: Sequence[int] = (1, 4, 16, 64, 256),
    replications: int = 8,
    weight: Tensor | None = None,
    sampler: str = "iid",
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Study:
    r"""Measure how far the estimate with n samples, and its gradient, are from what infinitely many would give.

    .. math::

        L_n = \frac{1}{M} \sum_b \frac1n \sum_i T_{bi}, \qquad
        \mathrm{se}_n^2 = \frac{1}{M^2} \sum_b \frac{\mathrm{Var}_i\, T_{bi}}{n}, \qquad
        \frac{\mathrm{sd}_n(g)}{\|g\|} = \frac{1}{\|\bar g_N\|} \sqrt{\frac{1}{R - 1} \sum_r \|g_{nr} - \bar g_n\|^2}

    T is the squared error of a sample, L the "mean" of `expected_squared_error` and M its number of pixels, g its
    gradient, r counts R independent calls, and N is the largest n. The variance is that of all n R samples of a datum,
    streamed. Neither antithetic samples nor Sobol points are independent: there the standard error is the calls'
    standard deviation.

    Memory is that of one call, whatever n. Parameters' `.grad` are left alone.

    Parameters
    ----------
    x, mu, logvar, decoder, weight, sampler, seed, generator
        As for `expected_squared_error`; a batch of some dozens of data is enough.
    num_samples : sequence of int
        The numbers of samples per datum to look at.
    replications : int
        The number R of independent calls for each n, at least 2. The gradients' deviations are then known to about
        one part in sqrt(2 (R - 1)) or better: the more independent components the gradient has, the better.

    Returns
    -------
    Study
        A table of arrays. `value` is what `expected_squared_error` returns for the same seed.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what was expected.

    References
    ----------
    Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014, section 2.3, where one sample is found enough
    "as long as the minibatch size was large enough".

    Notes
    -----
    The errors are those of sampling z alone, for these data. In training, the choice of the minibatch adds its own.

    Examples
    --------
    >>> import torch, mcelbo
    >>> x, mu, logvar = torch.rand(32, 1, 28, 28), torch.zeros(32, 2), torch.zeros(32, 2)
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 784), torch.nn.Sigmoid())
    >>> found = mcelbo.study(x, mu, logvar, decoder, num_samples=(1, 16, 256), seed=0)
    >>> found.num_samples
    array([  1,  16, 256])
    >>> bool(found.standard_error[2] < found.standard_error[0])
    True
    """
    if not isinstance(num_samples, Iterable):
        raise TypeError(f"num_samples is {num_samples!r}: expected a sequence of integers")
    counts = [as_integer("num_samples", n) for n in num_samples]
    if not counts:
        raise ValueError("num_samples is empty: expected at least one number of samples")
    if as_integer("replications", replications) < 2:
        raise ValueError(f"replications is {replications}: expected at least 2, whose spread can be seen")
    draw = {"weight": weight, "sampler": sampler}
    key = prepare(x, mu, logvar, num_samples=counts[0], seed=seed, generator=generator, **draw).seed  # type: ignore[arg-type]
    calls = [prepare(x, mu, logvar, num_samples=n, seed=key, **draw) for n in counts]  # type: ignore[arg-type]
    with torch.inference_mode(False), torch.enable_grad():
        rows = [_replicated(_with_leaves(call), decoder, replications) for call in calls]
    value, error, posterior, posterior_norm, parameters, parameters_norm = np.array(rows, np.float64).T
    best = int(np.argmax(counts))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = posterior / posterior_norm[best], parameters / parameters_norm[best]
    return Study(np.array(counts), value, error, *relative, replications=replications)


def _with_leaves(arguments: Arguments) -> Arguments:
    """Cut the arguments off from whatever they were computed from, and ask for the posterior's gradients."""
    a = arguments
    x, mu, logvar = (tensor.detach().clone() for tensor in (a.x, a.mu, a.logvar))
    weight = None if a.weight is None else a.weight.detach().clone()
    return replace(a, x=x, mu=mu.requires_grad_(), logvar=logvar.requires_grad_(), weight=weight)


def _replicated(arguments: Arguments, decoder: Decoder, replications: int) -> tuple[float, ...]:
    """Return the value and its standard error, and deviation and norm of the posterior's and the decoder's gradient."""
    n, pixels = arguments.num_samples, float(arguments.pixel_counts()[1])
    errors, posterior, parameters = Stream(), Stream(), Stream()
    values = []
    for r in range(replications):
        # Calls whose data are numbered differently are independent, those of Sobol points too.
        sums = sum_of_errors(replace(arguments, datum_offset=r * arguments.x.shape[0]), decoder)
        values.append(_ratio(float(sums.mean.sum()), pixels))
        errors.add(sums.mean, n, sums.squares)
        of_posterior, of_decoder = _gradients(sums.total / pixels, arguments)
        posterior.add(of_posterior)
        parameters.add(of_decoder)
    if arguments.sampler == "iid":
        error = _ratio(math.sqrt(float(errors.variance().sum()) / n), pixels)
    else:
        error = float(np.std(values, ddof=1))
    spread = (s for g in (posterior, parameters) for s in (float(g.variance().sum().sqrt()), float(g.mean.norm())))
    return values[0], error, *spread


def _gradients(loss: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Return the gradient by mu and logvar, and that by every other leaf behind the loss, each as one long vector."""
    posterior = (arguments.mu, arguments.logvar)
    leaves = survey(loss, -1, None, 0).leaves
    decoder = [leaf for leaf in leaves if not any(leaf is tensor for tensor in posterior)]
    wanted = [*posterior, *decoder]
    if loss.requires_grad:
        found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    else:
        found = tuple(torch.zeros_like(tensor) for tensor in wanted)
    like = torch.zeros(0, dtype=wide(loss.device), device=loss.device)
    flat = [gradient.flatten().to(like) for gradient in found]
    return torch.cat(flat[:2]), torch.cat([like, *flat[2:]])


def _ratio(part: float, whole: float) -> float:
    """Divide as arrays do: nothing by nothing is NaN."""
    return float(np.divide(part, whole)) if whole else math.nan
