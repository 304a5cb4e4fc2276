"""Monte Carlo evidence lower bounds for variational autoencoders: many samples, one pass, gradients included."""

from __future__ import annotations

from importlib.metadata import version

from mcelbo.bounds import Bound, elbo
from mcelbo.decoders import Explanation, explain
from mcelbo.diagnostics import Study, study
from mcelbo.first_call import warmup
from mcelbo.likelihoods import Bernoulli, Gaussian
from mcelbo.losses import ELBOLoss, expected_squared_error, posterior_parameters
from mcelbo.sampling import noise
from mcelbo.spread import Spread, reconstruction_spread
from mcelbo.threads import torch_team
from mcelbo_kernels.cpu import use_team

__version__ = version("mcelbo")
use_team(torch_team())
__all__ = [
    "Bernoulli",
    "Bound",
    "ELBOLoss",
    "Explanation",
    "Gaussian",
    "Spread",
    "Study",
    "elbo",
    "expected_squared_error",
    "explain",
    "noise",
    "posterior_parameters",
    "reconstruction_spread",
    "study",
    "warmup",
]
