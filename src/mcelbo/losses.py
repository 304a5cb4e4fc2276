"""The public losses: thin arithmetic on the sums of squared errors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from mcelbo import anydecoder, ops
from mcelbo.arguments import Arguments, Sums, prepare
from mcelbo.decoders import Decoder, choose
from mcelbo.likelihoods import Gaussian, Scalar, log_density, scalar

REDUCTIONS = ("none", "sum", "batchmean", "mean")
BOUNDS = ("elbo",)
GRADIENTS = ("reparam",)
UNIT = Gaussian()


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
        Maps (N, d) to (N, m) or (N, ...); see `explain` for what is fused.
    num_samples : int
        The number n of samples per datum.
    weight : Tensor, optional
        Pixel weights w >= 0 that broadcast to x, such as a mask; a weight of 0 excludes the pixel whatever it holds.
    reduction : {"mean", "batchmean", "sum", "none"}
        "none": T, shape (B, n). "sum": the sum over the data of the mean over the samples. "batchmean": that, divided
        by B. "mean": the sum, divided by the sum of all weights, which is B m without weights; what `F.mse_loss` of
        the decoded samples is.
    eps : Tensor, optional
        Noise of your own, shape (B, n, d), in place of what the following describe. No gradient flows to it.
    sampler : {"iid", "antithetic"}
        "antithetic" draws pairs of opposite samples.
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
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: expected one of {_listed(REDUCTIONS)}")
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
        path = choose(decoder, arguments.x.device)
        if path.description is None:
            return anydecoder.errors(arguments, decoder)
        return ops.errors(arguments, path.description)
    total = _sums(arguments, decoder).total
    if reduction == "sum":
        return total
    return total / (arguments.x.shape[0] if reduction == "batchmean" else _pixels(arguments)[1])


class Bound(NamedTuple):
    """What `elbo` returns; only `loss` carries gradients.

    Attributes
    ----------
    loss : Tensor
        Minus the mean of `bound` over the batch, a scalar.
    bound : Tensor, shape (B,)
        The estimated lower bound on log p(x), in nats: `reconstruction - beta * kl`.
    reconstruction : Tensor, shape (B,)
        The mean over the samples of log p(x|z).
    kl : Tensor, shape (B,)
        KL(q(z|x) || N(0, I)).
    variance : Tensor, shape (B,), or None
        The estimated variance of `reconstruction`; NaN for one sample, None where the samples are not independent.
    """

    loss: Tensor
    bound: Tensor
    reconstruction: Tensor
    kl: Tensor
    variance: Tensor | None

    def standard_error(self) -> Tensor:
        """Return the standard error of `reconstruction` and so of `bound`, shape (B,).

        It is the samples' standard deviation over the square root of their number.

        Raises
        ------
        ValueError
            If the samples are not independent, as antithetic ones are not.
        """
        if self.variance is None:
            raise ValueError("the samples are antithetic, not independent: repeat with other seeds and compare instead")
        return self.variance.sqrt()


def elbo(
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    decoder: Decoder,
    *,
    num_samples: int,
    likelihood: Gaussian = UNIT,
    beta: float | Tensor = 1.0,
    bound: str = "elbo",
    gradient: str = "reparam",
    weight: Tensor | None = None,
    eps: Tensor | None = None,
    sampler: str = "iid",
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    datum_offset: int = 0,
    sample_offset: int = 0,
) -> Bound:
    r"""Return the evidence lower bound with n samples per datum, and minus its mean as a loss.

    .. math::

        \log p(x) \ge \frac1n \sum_i \log p(x|z_i) - \beta \, \mathrm{KL}, \qquad
        \mathrm{KL} = \frac12 \sum_k (\mu_k^2 + \sigma_k^2 - 1 - \log\sigma_k^2)

    Pixels and latents are summed, data are averaged, and the KL against N(0, I) is in closed form. A mean over the
    pixels beside a summed KL would weigh the KL m times too heavily.

    Parameters
    ----------
    x, mu, logvar, decoder, num_samples, weight
        As for `expected_squared_error`. A pixel of weight 0 leaves the likelihood altogether.
    likelihood : Gaussian
        With a fixed, a learned or the optimal pixel scale.
    beta : float or scalar Tensor
        The weight of the KL. The result bounds log p(x) for beta >= 1 only.
    bound : {"elbo"}
        Which bound is estimated.
    gradient : {"reparam"}
        How its gradient is estimated: through the reparameterised samples.
    eps, sampler, seed, generator, datum_offset, sample_offset
        The noise, as for `expected_squared_error`.

    Returns
    -------
    Bound
        A named tuple (loss, bound, reconstruction, kl, variance). Only `loss` carries gradients; the fields of shape
        (B,) are detached.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what was expected.
    RuntimeError
        If a second derivative is asked for.

    References
    ----------
    Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014; Higgins et al., "beta-VAE", ICLR 2017.

    Examples
    --------
    >>> import torch, mcelbo
    >>> x, mu, logvar = torch.rand(8, 1, 28, 28), torch.zeros(8, 2), torch.zeros(8, 2)
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 784), torch.nn.Sigmoid())
    >>> out = mcelbo.elbo(x, mu, logvar, decoder, num_samples=16, likelihood=mcelbo.Gaussian(sigma=0.1))
    >>> out.loss.backward()
    >>> out.bound.shape, out.standard_error().shape
    (torch.Size([8]), torch.Size([8]))
    """
    for name, option, known in (("bound", bound, BOUNDS), ("gradient", gradient, GRADIENTS)):
        if option not in known:
            raise ValueError(f"{name} is {option!r}: expected one of {_listed(known)}")
    if not isinstance(likelihood, Gaussian):
        raise TypeError(f"likelihood is {type(likelihood).__qualname__}: expected a Gaussian")
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
    return _bound(arguments, _sums(arguments, decoder), likelihood, scalar("beta", beta, ">= 0"))


def _bound(arguments: Arguments, sums: Sums, likelihood: Gaussian, beta: Scalar) -> Bound:
    a, n = arguments, arguments.num_samples
    beta = beta.to(a.x) if isinstance(beta, Tensor) else beta
    pixels, all_pixels = _pixels(a)
    s2, log_s2 = likelihood.variance(sums.total, all_pixels)
    # expm1, because the terms cancel where the posterior is close to the prior.
    kl = (a.mu.square() + torch.expm1(a.logvar) - a.logvar).sum(1) / 2  # (B,)
    loss = (beta * kl.sum() - log_density(sums.total, all_pixels, s2, log_s2)) / a.x.shape[0]
    with torch.no_grad():
        reconstruction = log_density(sums.mean, pixels, s2, log_s2).to(a.x.dtype)  # (B,)
        # the samples' variance over n, (1 / (n - 1)) sum_i (T_i - mean)^2 / n / (2 s^2)^2; 0 / 0 for one sample
        variance = (sums.squares / (n * (n - 1)) / (2 * s2) ** 2).to(a.x.dtype)  # (B,)
        independent = a.eps is not None or a.sampler == "iid"
        kl = kl.detach()
        return Bound(loss, reconstruction - beta * kl, reconstruction, kl, variance if independent else None)


class ELBOLoss(nn.Module):
    r"""The negative evidence lower bound as a criterion.

    It owns no decoder: one that did would register the decoder's parameters a second time.

    .. math:: \mathrm{loss} = \frac1B \sum_b \Bigl(\beta \, \mathrm{KL}_b - \frac1n \sum_i \log p(x_b|z_{bi})\Bigr)

    Parameters
    ----------
    num_samples, likelihood, beta, bound, gradient, sampler
        As for `elbo`; they are plain attributes, so that `beta` can be annealed. A learned scale in `likelihood` is
        not registered here either: give it to the optimiser yourself.

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
        likelihood: Gaussian = UNIT,
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


def _sums(arguments: Arguments, decoder: Decoder) -> Sums:
    path = choose(decoder, arguments.x.device)
    if path.description is None:
        return anydecoder.sum_of_errors(arguments, decoder)
    return ops.sum_of_errors(arguments, path.description)


def _pixels(arguments: Arguments) -> tuple[Scalar, Scalar]:
    """m_b = sum_j w[b, j], (B,) or one number for all, and its sum over the batch."""
    batch, pixels = arguments.x.shape
    if arguments.weight is None:
        return pixels, batch * pixels
    each = arguments.weight.sum(1)  # (B,) or (1,)
    return each, each.expand(batch).sum()


def _listed(options: tuple[str, ...]) -> str:
    return ", ".join(map(repr, options))
