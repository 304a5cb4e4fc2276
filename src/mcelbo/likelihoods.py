"""Likelihoods: which cell and which pixel weights to run, and what turns errors into log densities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcelbo.arguments import Arguments, Sums, check_tensor, flat_pixels, promote

Scalar = float | Tensor


def scalar(name: str, value: object, smallest: str) -> Scalar:
    """Return a finite float, or a 0-d tensor whose value is not inspected; `smallest` says what a float may be."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.numel() != 1:
            came = f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
            raise TypeError(f"{name} is {came}: expected one floating-point number")
        return value.reshape(())
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} is {value!r}: expected a float or a scalar tensor")
    # by comparisons alone, which the compiler can trace where the number differs from call to call
    if not 0 <= value < math.inf or (value == 0 and smallest != ">= 0"):
        raise ValueError(f"{name} is {value}: expected a finite {name} {smallest}")
    return float(value)


class LogDensity(NamedTuple):
    """log p(x_b|z) = -T_b / divisor - constant_b, for the error T_b of any sample of datum b."""

    divisor: Scalar
    constant: Scalar  # (B,), (1,), or one number for all data


class Likelihood:
    """What a bound asks of a likelihood."""

    def run(self, arguments: Arguments) -> Arguments:
        """Return the caller's arguments with the cell and the pixel weights that the errors are to be computed with."""
        raise NotImplementedError

    def log_density(self, arguments: Arguments, sums: Sums) -> LogDensity:
        """Return what those errors, which sum up to `sums`, are in nats; `arguments` are the caller's."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Gaussian(Likelihood):
    r"""A Gaussian likelihood with one scale for all pixels, or one for each.

    .. math:: \log p(x|z) = -\sum_j w_j \Bigl(\frac{(x_j - y_j)^2}{2 s_j^2} + \frac12 \log(2 \pi s_j^2)\Bigr)

    y is the decoded z, w the pixel weight: a weight of 0 removes the pixel.

    Parameters
    ----------
    sigma : float, Tensor or "optimal"
        The pixel scale s, in the units of x. A scalar tensor is a learned scale through which gradients flow; make it
        positive, as `log_sigma.exp()` is (a negative one gives NaN), and anew in every step. A larger tensor has a
        scale for each pixel, and gradients flow through it likewise: of shape (m,), or any that broadcasts to that of
        x, such as (C, H, W).
        "optimal" is the one scale that maximises the likelihood of the batch: s^2 is the squared error averaged over
        its pixels, samples and data. The loss is then (M/2) log s^2 up to constants for M pixels in the batch, and so
        is its gradient; it has no value where the fit is perfect.

    Raises
    ------
    TypeError
        If sigma is neither a float, nor a floating-point tensor, nor "optimal".
    ValueError
        If a float sigma is not positive and finite; in a bound, if a tensor of scales does not go with x.

    References
    ----------
    Rybkin, Daniilidis and Levine, "Simple and effective VAE training with calibrated decoders", ICML 2021.

    Examples
    --------
    >>> import torch, mcelbo
    >>> mcelbo.Gaussian(sigma=0.1)
    Gaussian(sigma=0.1)
    >>> mcelbo.Gaussian("optimal")
    Gaussian(sigma='optimal')
    >>> per_pixel = mcelbo.Gaussian(torch.full((28, 28), 0.1))
    """

    sigma: float | Tensor | str = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.sigma, str):
            if self.sigma != "optimal":
                raise ValueError(f"sigma is {self.sigma!r}: expected a float, a tensor or 'optimal'")
        elif not isinstance(self.sigma, Tensor) or self.sigma.numel() == 1:
            scalar("sigma", self.sigma, "> 0")
        elif not self.sigma.is_floating_point():
            raise TypeError(f"sigma is a tensor of {self.sigma.dtype}: expected floating-point numbers")

    def run(self, arguments: Arguments) -> Arguments:
        """Divide the weights by the variances of the pixels, where these have their own."""
        sigma = self._of_pixels(arguments)
        if sigma is None:
            return arguments
        weight = arguments.weight
        if weight is None:
            return replace(arguments, weight=1.0 / sigma.square())
        # Of a pixel of weight 0 sigma's gradient would be 0 times that of its weight, which is what the pixel holds.
        excluded = weight == 0
        held = sigma.detach().masked_fill(~excluded, 0.0)
        return replace(arguments, weight=weight / (sigma.masked_fill(excluded, 0.0) + held).square())

    def log_density(self, arguments: Arguments, sums: Sums) -> LogDensity:
        """Return T / 2 and sum_j w_j log(2 pi s_j^2) / 2, or T / (2 s^2) and (m / 2) log(2 pi s^2)."""
        sigma = self._of_pixels(arguments)
        if sigma is not None:
            constants = sigma.log() + math.log(2 * math.pi) / 2
            return LogDensity(2.0, (constants if arguments.weight is None else arguments.weight * constants).sum(1))
        pixels, all_pixels = arguments.pixel_counts()
        variance, log_variance = self._variance(sums.total, all_pixels)
        return LogDensity(2 * variance, pixels / 2 * (math.log(2 * math.pi) + log_variance))

    def _of_pixels(self, arguments: Arguments) -> Tensor | None:
        """Return the scales of the pixels, (B or 1, m), or None for a single one; a weight of 0 replaces a bad one."""
        sigma, x, weight = self.sigma, arguments.x, arguments.weight
        if not isinstance(sigma, Tensor) or sigma.numel() == 1:
            return None
        check_tensor("sigma", sigma, x)
        shape = torch.Size((len(x), *arguments.pixel_shape))
        listed = sigma.shape == x.shape[1:]  # (m,), whatever the shape of a datum
        sigma = promote(sigma)
        sigma = sigma.unsqueeze(0) if listed else flat_pixels("sigma", sigma, shape)
        if weight is None:
            return sigma
        unused = (weight == 0) & ~(sigma.log() / sigma.square()).isfinite()
        # not torch.where, whose derivative copies a number to a GPU and waits for it
        return sigma.expand_as(unused).masked_fill(unused, 1.0)

    def _variance(self, total: Tensor, pixels: Scalar) -> tuple[Scalar, Scalar]:
        """Return s^2 and log s^2 for a batch's sum of mean errors and its number of pixels."""
        if isinstance(self.sigma, str):
            # At the optimum the likelihood is flat in s^2, so holding s^2 constant changes no gradient.
            optimum = (total / pixels).detach()
            return optimum, optimum.log()
        sigma = scalar("sigma", self.sigma, "> 0")
        if isinstance(sigma, Tensor):
            sigma = sigma.to(total)
            return sigma * sigma, 2 * sigma.log()
        return sigma * sigma, 2 * math.log(sigma)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    r"""A Bernoulli likelihood of pixels that are 0 or 1, whose logits y the decoder returns.

    .. math:: \log p(x|z) = \sum_j w_j \bigl(x_j y_j - \log(1 + e^{y_j})\bigr)

    w is the pixel weight: a weight of 0 removes the pixel. The sum is minus
    `F.binary_cross_entropy_with_logits(y, x, w, reduction="sum")`. A decoder that is known to end in a Sigmoid is
    refused, because it returns probabilities.

    Notes
    -----
    x is not checked by value. For x strictly between 0 and 1, such as grey levels, this is the usual cross-entropy
    surrogate and not the logarithm of a density: its bound is comparable with none but its own kind.

    References
    ----------
    Loaiza-Ganem and Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders",
    NeurIPS 2019.

    Examples
    --------
    >>> import torch, mcelbo
    >>> x, mu, logvar = torch.rand(8, 784).round(), torch.zeros(8, 2), torch.zeros(8, 2)
    >>> logits = torch.nn.Linear(2, 784)
    >>> out = mcelbo.elbo(x, mu, logvar, logits, num_samples=16, likelihood=mcelbo.Bernoulli())
    >>> out.loss.backward()
    """

    def run(self, arguments: Arguments) -> Arguments:
        """Return the arguments with the cell that takes logits."""
        return replace(arguments, cell="bernoulli")

    def log_density(self, arguments: Arguments, sums: Sums) -> LogDensity:
        """Return -T."""
        return LogDensity(1.0, 0.0)
