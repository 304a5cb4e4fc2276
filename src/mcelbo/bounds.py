"""The evidence lower bound: thin arithmetic on the sums of errors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mcelbo.arguments import Arguments, Sums, check_option, prepare
from mcelbo.decoders import Decoder
from mcelbo.exact import EXACT
from mcelbo.likelihoods import Gaussian, Likelihood, Scalar, scalar
from mcelbo.paths import sum_of_errors

BOUNDS = ("elbo",)
GRADIENTS = ("reparam",)
UNIT = Gaussian()


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
            If the samples are not independent, as neither antithetic ones nor the Sobol points of one scramble are.
        """
        if self.variance is None:
            raise ValueError(
                "antithetic samples and the Sobol points of one scramble are not independent: repeat with other seeds, "
                "whose samples are, and compare the results instead"
            )
        return self.variance.sqrt()


def elbo(
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    decoder: Decoder,
    *,
    num_samples: int,
    likelihood: Likelihood = UNIT,
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
    likelihood : Gaussian or Bernoulli
        Gaussian with a fixed, a learned or the optimal pixel scale; Bernoulli for a decoder that returns logits.
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
    check_option("bound", bound, BOUNDS)
    check_option("gradient", gradient, GRADIENTS)
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihood is {type(likelihood).__qualname__}: expected a Gaussian or a Bernoulli")
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
    beta = scalar("beta", beta, ">= 0")
    return _bound(arguments, sum_of_errors(likelihood.run(arguments), decoder), likelihood, beta)


def _bound(arguments: Arguments, sums: Sums, likelihood: Likelihood, beta: Scalar) -> Bound:
    a, n, batch = arguments, arguments.num_samples, arguments.x.shape[0]
    beta = beta.to(a.x) if isinstance(beta, Tensor) else beta
    divisor, constant = likelihood.log_density(a, sums)  # log p(x_b|z) = -T_b / divisor - constant_b
    constants = constant.expand(batch).sum() if isinstance(constant, Tensor) else batch * constant
    # expm1, because the terms cancel where the posterior is close to the prior.
    kl = (a.mu.square() + torch.expm1(a.logvar) - a.logvar).sum(1) / 2  # (B,)
    loss = (beta * kl.sum() + sums.total / divisor + constants) / batch
    with torch.no_grad():
        reconstruction = (-sums.mean / divisor - constant).to(a.x.dtype)  # (B,)
        # the samples' variance over n, (1 / (n - 1)) sum_i (T_i - mean)^2 / n / divisor^2; 0 / 0 for one sample
        pairs = 1 if a.sampler == EXACT else n * (n - 1)
        variance = (sums.squares / pairs / divisor**2).to(a.x.dtype)  # (B,)
        independent = a.eps is not None or a.sampler in ("iid", EXACT)
        kl = kl.detach()
        return Bound(loss, reconstruction - beta * kl, reconstruction, kl, variance if independent else None)
