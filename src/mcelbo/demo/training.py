"""Training and evaluation, both by `mcelbo.elbo`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mcelbo
from mcelbo.demo.model import Autoencoder

BATCH = 64
LEARNING_RATE = 2e-3
# Unless the number of epochs is given: a minute or so, whatever the number and the size of the images.
STEPS = 3000
SMALL = 1024  # pixels, up to which a step costs about the same


def default_epochs(images: Tensor) -> int:
    """Return how many passes over the images make about STEPS steps, fewer for large images."""
    steps = STEPS * min(1.0, SMALL / images[0].numel())
    return max(1, round(steps / -(-len(images) // BATCH)))


def train(
    model: Autoencoder,
    images: Tensor,
    *,
    epochs: int,
    num_samples: int,
    seed: int,
    done: Callable[[float], object] = lambda loss: None,
) -> None:
    """Train on images (N, ...); `done` gets each epoch's mean loss."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    with threads(1 if images[0].numel() <= SMALL else torch.get_num_threads()):
        for _ in range(epochs):
            total = 0.0
            for batch in torch.randperm(len(images), generator=generator).split(BATCH):  # type: ignore[no-untyped-call]
                loss = bound(model, images[batch], num_samples=num_samples, generator=generator).loss
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                total += loss.item() * len(batch)
            schedule.step()
            done(total / len(images))


def bound(model: Autoencoder, x: Tensor, **draw: Any) -> mcelbo.Bound:
    """Return the evidence lower bound of images (B, ...)."""
    return mcelbo.elbo(x, *model.posterior(x), model.decoder, likelihood=model.likelihood, **draw)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Scores(NamedTuple):
    """Means over a set of images, estimated with n samples per image; errors are standard errors of the estimate."""

    samples: int
    bound: float  # nats per image
    bound_error: float
    squared_error: float  # per image, pixels summed
    squared_error_error: float
    kl: float  # nats per image


def evaluate(model: Autoencoder, images: Tensor, num_samples: Sequence[int], seed: int) -> list[Scores]:
    """Return the scores of a set of images for each number of samples."""
    found = []
    with torch.no_grad():
        mu, logvar = model.posterior(images)
        sigma = float(model.log_sigma.exp())
        for n in num_samples:
            out = bound(model, images, num_samples=n, seed=seed)
            error = mcelbo.expected_squared_error(
                images, mu, logvar, model.decoder, num_samples=n, seed=seed, reduction="batchmean"
            )
            # Images are independent:  var(mean_b) = sum_b var_b / B^2;   bound = -T / (2 s^2) + ...
            spread = float(out.standard_error().norm()) / len(images)
            means = float(out.bound.mean()), spread, float(error), 2 * sigma**2 * spread, float(out.kl.mean())
            found.append(Scores(n, *means))
    return found
