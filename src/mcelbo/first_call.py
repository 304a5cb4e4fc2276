"""What the first call of a kernel takes, spent when it suits the caller."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mcelbo.bounds import UNIT, elbo
from mcelbo.decoders import Decoder, Explanation, Unfusable, describe, explain
from mcelbo.likelihoods import Likelihood


def warmup(
    decoder: Decoder,
    x: Tensor,
    *,
    num_samples: int,
    likelihood: Likelihood = UNIT,
    weight: Tensor | None = None,
    sampler: str = "iid",
) -> Explanation:
    r"""Compile the kernels that a decoder's losses run on, or load them from the cache, before they are needed.

    A kernel is compiled for the decoder's activations, the likelihood, the kind of noise and the dtype, which takes
    seconds once on a machine and a fraction of one in every later process. Here that is done by a value with gradients
    and one without, for the posterior N(0, I) and noise of its own seed: no generator moves on, and no `grad` changes.

    Parameters
    ----------
    decoder : callable
        What will be passed to `elbo` or `expected_squared_error`. One that is not fused needs no kernels.
    x : Tensor
        A batch like those to come, (B, m) or (B, ...): its shape and dtype count, and whether it requires a gradient.
    num_samples, likelihood, weight, sampler
        As they will be passed to `elbo`.

    Returns
    -------
    Explanation
        Which path the decoder takes, as from `explain`.

    Raises
    ------
    TypeError, ValueError
        As from `elbo`.

    Examples
    --------
    >>> import torch, mcelbo
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 784), torch.nn.Sigmoid())
    >>> mcelbo.warmup(decoder, torch.zeros(8, 1, 28, 28), num_samples=16).path
    'grid'
    """
    explanation, found = explain(decoder, x, num_samples), describe(decoder)
    if isinstance(found, Unfusable):
        return explanation
    posterior = x.new_zeros(2, len(x), found.layers[0].weight.shape[1])
    with torch.enable_grad():
        mu, logvar = posterior.detach().requires_grad_()
        data = x.detach().requires_grad_(x.requires_grad)
        inputs = [mu, logvar, *([data] if x.requires_grad else [])]
        bound = partial(
            elbo,
            data,
            mu,
            logvar,
            decoder,
            num_samples=num_samples,
            likelihood=likelihood,
            weight=weight,
            sampler=sampler,
            seed=0,
        )
        torch.autograd.grad(bound().loss, inputs)
    with torch.no_grad():
        bound()
    return explanation
