"""Means and squared deviations of what comes in parts, of which nothing is kept."""

from __future__ import annotations

import torch
from torch import Tensor


class Stream:
    """The mean of what comes, and the sum of its squared deviations, number by number."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, mean: Tensor, count: int = 1, squares: Tensor | float = 0.0) -> None:
        """Add `count` values by their mean and the sum of their squared deviations from it."""
        if not self.count:
            self.mean, self.squares = torch.zeros_like(mean), torch.zeros_like(mean)
        # Chan, Golub and LeVeque (1983): d = mean_b - mean_a,  S = S_a + S_b + d^2 n_a n_b / (n_a + n_b)
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.count = total

    def variance(self) -> Tensor:
        """Return the unbiased variance."""
        return self.squares / (self.count - 1)
