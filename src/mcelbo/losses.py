"""The expected squared error as a loss, the bound as a criterion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from mcelbo.arguments import check_option, prepare
from mcelbo.bounds import UNIT, elbo
from mcelbo.decoders import Decoder
from mcelbo.likelihoods import Likelihood
from mcelbo.paths import errors, sum_of_errors

REDUCTIONS = ("none", "sum", "batchmean", "mean")


def expected_squared_error(
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    decoder: Decoder,
    *,
    num_samples: int,
    weight: Tensor | None = None,
    reduction: str = "mean",
    eps: Tensor | None = None,
    sampler: str = "iid",
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    datum_offset: int = 0,
    sample_offset: int = 0,
) -> Tensor:
    r"""Return the squared error of decoded samples of a Gaussian posterior, estimated with n samples per datum.

    .. math:: T_{bi} = \sum_j w_{bj} \bigl(x_{bj} - D(\mu_b + e^{\log\sigma_b^2/2} \epsilon_{bi})_j\bigr)^2

    Every sample has its own error: averaging the reconstructions first would drop the variance term of
    :math:`\frac1n\sum_i \|x - y_i\|^2 = \|x - \bar y\|^2 + \frac1n\sum_i \|y_i - \bar y\|^2`.

    Parameters
    ----------
    x : Tensor
        Data of shape (B, m) or (B, ...), for example images (B, C, H, W).
    mu, logvar : Tensor
        The posterior's mean and log variance, both (B, d). `logvar` is log sigma^2: for a standard deviation pass
        `2 * std.log()`, for a distribution see `posterior_parameters`.
    decoder : callable
        Maps (N, d) to (N, m) or (N, ...); see `explain` for what is fused. Any other runs on chunks of samples, none of
        which may depend on the chunk that it is in. A module with BatchNorm layers in training mode runs on all samples
        at once, as its statistics ask for.
    num_samples : int
        The number n of samples per datum.
    weight : Tensor, optional
        Pixel weights w >= 0 that broadcast to x, such as a mask; a weight of 0 excludes the pixel whatever it holds.
        (The gradient of such a weight itself is what the pixel would add.)
    reduction : {"mean", "batchmean", "sum", "none"}
        "none": T, shape (B, n). "sum": the sum over the data of the mean over the samples. "batchmean": that, divided
        by B. "mean": the sum, divided by the sum of all weights, which is B m without weights; what `F.mse_loss` of
        the decoded samples is.
    eps : Tensor, optional
        Noise of your own, shape (B, n, d), in place of what the following describe. No gradient flows to it.
    sampler : {"iid", "antithetic", "sobol"}
        "antithetic" draws pairs of opposite samples, so that n must be even. "sobol" draws scrambled Sobol points,
        whose mean has a far smaller error where the decoder is smooth and there are few latents; powers of two suit
        them best. See `noise`.
    seed : int or 0-d int64 Tensor, optional
        By default one is drawn from torch's generator, so `torch.manual_seed` governs.
    generator : torch.Generator, optional
        The generator to draw the seed from instead.
    datum_offset, sample_offset : int
        The global index of the first datum and of the first sample. The ranks of a distributed run that share a seed
        draw the same noise unless `datum_offset` tells them apart.

    Returns
    -------
    Tensor
        A scalar, or (B, n) for "none"; float32 for half-precision input, else of x's dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what was expected.
    RuntimeError
        If a second derivative is asked for.

    References
    ----------
    Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014.

    Notes
    -----
    A mean over pixels is the formula of many tutorials, but beside a KL summed over the latents it implies a pixel
    scale of s^2 = m / 2, or a beta of m / 2 at unit scale: for a bound use `elbo`.

    Examples
    --------
    >>> import torch, mcelbo
    >>> x, mu, logvar = torch.rand(8, 1, 28, 28), torch.zeros(8, 2), torch.zeros(8, 2)
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 784), torch.nn.Sigmoid())
    >>> loss = mcelbo.expected_squared_error(x, mu, logvar, decoder, num_samples=16)
    >>> loss.backward()
    >>> mcelbo.expected_squared_error(x, mu, logvar, decoder, num_samples=16, reduction="none").shape
    torch.Size([8, 16])
    """
    check_option("reduction", reduction, REDUCTIONS)
    arguments = prepare(
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
    if reduction == "none":
        return errors(arguments, decoder)
    total = sum_of_errors(arguments, decoder).total
    if reduction == "sum":
        return total
    return total / (arguments.x.shape[0] if reduction == "batchmean" else arguments.pixel_counts()[1])


class ELBOLoss(nn.Module):
    r"""The negative evidence lower bound as a criterion.

    It owns no decoder: one that did would register the decoder's parameters a second time.

    .. math:: \mathrm{loss} = \frac1B \sum_b \Bigl(\beta \, \mathrm{KL}_b - \frac1n \sum_i \log p(x_b|z_{bi})\Bigr)

    Parameters
    ----------
    num_samples, likelihood, beta, bound, gradient, sampler
        As for `elbo`; they are plain attributes, so that `beta` can be annealed. A learned scale in `likelihood` is
        not registered here either: give it to the optimiser yourself, and where it is computed, as `log_sigma.exp()`
        is, set `criterion.likelihood = Gaussian(log_sigma.exp())` before each call, because backward frees its graph.

    Raises
    ------
    TypeError, ValueError
        As for `elbo`, when called.

    Examples
    --------
    >>> import torch, mcelbo
    >>> criterion = mcelbo.ELBOLoss(num_samples=16)
    >>> x, mu, logvar = torch.rand(8, 1, 28, 28), torch.zeros(8, 2), torch.zeros(8, 2)
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 784), torch.nn.Sigmoid())
    >>> criterion(x, mu, logvar, decoder).backward()
    """

    def __init__(
        self,
        *,
        num_samples: int,
        likelihood: Likelihood = UNIT,
        beta: float | Tensor = 1.0,
        bound: str = "elbo",
        gradient: str = "reparam",
        sampler: str = "iid",
    ) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.likelihood = likelihood
        self.beta = beta
        self.bound = bound
        self.gradient = gradient
        self.sampler = sampler

    def forward(
        self,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor,
        decoder: Decoder,
        *,
        weight: Tensor | None = None,
        eps: Tensor | None = None,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        datum_offset: int = 0,
        sample_offset: int = 0,
    ) -> Tensor:
        """Return the loss of a batch, a scalar; arguments as for `elbo`."""
        return elbo(
            x,
            mu,
            logvar,
            decoder,
            num_samples=self.num_samples,
            likelihood=self.likelihood,
            beta=self.beta,
            bound=self.bound,
            gradient=self.gradient,
            weight=weight,
            eps=eps,
            sampler=self.sampler,
            seed=seed,
            generator=generator,
            datum_offset=datum_offset,
            sample_offset=sample_offset,
        ).loss

    def extra_repr(self) -> str:
        """List the settings for `repr`."""
        names = ("num_samples", "likelihood", "beta", "bound", "gradient", "sampler")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def posterior_parameters(q: Distribution) -> tuple[Tensor, Tensor]:
    r"""Return the mean and the log variance of a Gaussian posterior, as the losses take them.

    .. math:: (\mu, \log\sigma^2) = (\mathrm{loc}, 2 \log \mathrm{scale})

    Parameters
    ----------
    q : Normal or Independent
        `Normal(loc, scale)`, or `Independent` around one, of shape (B, d).

    Returns
    -------
    tuple of Tensor
        mu and logvar; gradients flow through both.

    Raises
    ------
    TypeError
        If q is any other distribution.

    Examples
    --------
    >>> import torch, mcelbo
    >>> q = torch.distributions.Normal(torch.zeros(8, 2), torch.ones(8, 2))
    >>> mu, logvar = mcelbo.posterior_parameters(q)
    """
    base = q.base_dist if isinstance(q, Independent) else q
    if not isinstance(base, Normal):
        came = type(q).__qualname__ if base is q else f"Independent({type(base).__qualname__})"
        raise TypeError(f"q is {came}: expected Normal or Independent(Normal)")
    return base.loc, 2 * base.scale.log()
