"""What a likelihood adds to the squared errors: constants and a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

Scalar = float | Tensor


def scalar(name: str, value: Scalar, smallest: str) -> Scalar:
    """Return a finite float, or a 0-d tensor whose value is not inspected; `smallest` says what a float may be."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.numel() != 1:
            came = f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
            raise TypeError(f"{name} is {came}: expected one floating-point number")
        return value.reshape(())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}: expected a float or a scalar tensor")
    if not math.isfinite(value) or value < 0 or (value == 0 and smallest != ">= 0"):
        raise ValueError(f"{name} is {value}: expected a finite {name} {smallest}")
    return float(value)


@dataclass(frozen=True, eq=False)
class Gaussian:
    r"""A Gaussian likelihood with one scale for all pixels.

    .. math:: \log p(x|z) = -\frac{\sum_j w_j (x_j - y_j)^2}{2 s^2} - \frac{\sum_j w_j}{2} \log(2 \pi s^2)

    y is the decoded z, w the pixel weight: a weight of 0 removes the pixel.

    Parameters
    ----------
    sigma : float, Tensor or "optimal"
        The pixel scale s, in the units of x. A scalar tensor is a learned scale through which gradients flow; make it
        positive, as `log_sigma.exp()` is (a negative one gives NaN). "optimal" is the scale that maximises the
        likelihood of the batch: s^2 is the squared error averaged over its pixels, samples and data. The loss is then
        (M/2) log s^2 up to constants for M pixels in the batch, and so is its gradient; it has no value where the fit
        is perfect.

    Raises
    ------
    TypeError
        If sigma is neither a float, nor a scalar tensor, nor "optimal".
    ValueError
        If a float sigma is not positive and finite.

    References
    ----------
    Rybkin, Daniilidis and Levine, "Simple and effective VAE training with calibrated decoders", ICML 2021.

    Examples
    --------
    >>> import mcelbo
    >>> mcelbo.Gaussian(sigma=0.1)
    Gaussian(sigma=0.1)
    >>> mcelbo.Gaussian("optimal")
    Gaussian(sigma='optimal')
    """

    sigma: float | Tensor | str = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.sigma, str):
            if self.sigma != "optimal":
                raise ValueError(f"sigma is {self.sigma!r}: expected a float, a scalar tensor or 'optimal'")
        else:
            scalar("sigma", self.sigma, "> 0")

    def variance(self, total: Tensor, pixels: Scalar) -> tuple[Scalar, Scalar]:
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


def log_density(error: Tensor, pixels: Scalar, variance: Scalar, log_variance: Scalar) -> Tensor:
    """-T / (2 s^2) - (m / 2) log(2 pi s^2), for one datum or the sum of many."""
    return -error / (2 * variance) - pixels / 2 * (math.log(2 * math.pi) + log_variance)
