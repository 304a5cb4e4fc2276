"""The demo's variational autoencoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import mcelbo

HIDDEN = 256
FIRST_SIGMA = 0.3


class Autoencoder(nn.Module):
    """Two multilayer perceptrons and a learned pixel scale.

    Parameters
    ----------
    pixels, latent : int
        The numbers of pixels of an image and of dimensions of its code.
    seed : int
        Decides the first weights.
    """

    def __init__(self, pixels: int, latent: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(nn.Linear(pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * latent))
            self.decoder = nn.Sequential(nn.Linear(latent, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, pixels), nn.Sigmoid())
        self.log_sigma = nn.Parameter(torch.tensor(math.log(FIRST_SIGMA)))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log variance (B, d) of the code of images (B, ...)."""
        mu, logvar = self.encoder(x.flatten(1)).chunk(2, dim=1)
        return mu, logvar

    @property
    def likelihood(self) -> mcelbo.Gaussian:
        """The pixels' Gaussian, with its scale as learned so far."""
        return mcelbo.Gaussian(self.log_sigma.exp())
