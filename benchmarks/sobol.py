"""Time to a given standard error: Sobol points and mcelbo against independent samples and PyTorch eager.

The error of n Sobol points is the root mean square over independent scrambles, about a mean of other scrambles of far
more points. That of n independent samples is known from the variance of one, so the n that is as good follows. Eager
would not hold that many in memory: its time is that of a sample, from a call as large as serves it well, times n.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.error import relative_error
from benchmarks.report import Row
from benchmarks.workloads import Case, Workload, build

LATENTS = (1, 2, 4, 8)
SAMPLES = (64, 512, 4096)
SCRAMBLES = 32
REFERENCE = (1 << 15, 16)  # points, and scrambles whose seeds no measured one has
EAGER = 1024  # samples of a call of eager


def loss(case: Case, samples: int, seed: int | None) -> Tensor:
    """Return mcelbo's mean squared error from Sobol points."""
    import mcelbo

    return mcelbo.expected_squared_error(
        case.x, case.mu, case.logvar, case.decoder, num_samples=samples, sampler="sobol", seed=seed
    )


def sobol_error(case: Case, samples: int, truth: float) -> float:
    """Return the relative root mean square error of a loss over the scrambles."""
    with torch.no_grad():
        values = [float(loss(case, samples, seed)) for seed in range(SCRAMBLES)]
    return float(np.sqrt(np.mean((np.array(values) - truth) ** 2))) / truth


def sweep(workload: Workload, seconds: float, done: Callable[[], object]) -> list[Row]:
    """Return a row per number of latents and of points; times are those of value and gradients."""
    rows: list[Row] = []
    for latent in LATENTS:
        shape = replace(workload, batch=1, latent=latent)
        single = relative_error(shape)
        exact, case = build(shape, torch.float64), build(shape)
        points, scrambles = REFERENCE
        with torch.no_grad():
            truth = float(np.mean([float(loss(exact, points, SCRAMBLES + seed)) for seed in range(scrambles)]))
        with closing(peers.start("eager", build(replace(shape, samples=EAGER)))) as eager:
            of_a_sample = eager.time("gradients", seconds) / EAGER
        for samples in SAMPLES:
            # float64 for the error, which may be below float32's rounding of the sum
            reached = sobol_error(exact, samples, truth)

            def draw(case: Case = case, samples: int = samples) -> Tensor:
                return loss(case, samples, None)

            elapsed = peers.TorchRunner(case, draw, draw).time("gradients", seconds)
            as_good = (single / reached) ** 2
            rows.append(
                {
                    "latents": latent,
                    "points": samples,
                    "standard error %": 100 * reached,
                    "sobol ms": 1e3 * elapsed,
                    "iid samples": as_good,
                    "iid eager ms": 1e3 * as_good * of_a_sample,
                    "times faster": as_good * of_a_sample / elapsed,
                }
            )
            done()
    return rows
