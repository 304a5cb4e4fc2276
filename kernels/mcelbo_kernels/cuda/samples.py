"""The samples of the posterior, and the sums over each datum's samples.

Row q of a chunk is sample i of datum b, with (b, i) = divmod(begin + q, n):

    z[q] = mu[b] + s[q],   s[q] = sigma[b] eps[b, i],   sigma = exp(logvar/2)
    dmu[b] += g dz[q],   dlogvar[b] += g dz[q] s[q] / 2

The samples are drawn once, by a kernel of their own, and not by each block that multiplies them: a layer of O outputs
has O / 128 blocks in a row, and an eps takes some 90 instructions, so that drawing them in each would cost more than
writing and reading 8 bytes for each, and a launch, from the third block on. Their deviations s are drawn again where
dlogvar needs them: z - mu would lose them beside a large mu.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from mcelbo_kernels.cuda.noise import THREADS, rows_of_draws, source_type
from mcelbo_kernels.cuda.scalars import binding
from mcelbo_kernels.cuda.seam import Kernel, device, int32, int64, pointer
from mcelbo_kernels.numerics.elementary import exp


# z[q] = mu[b] + sigma[b] eps[b, i] for rows begin to begin + count - 1 of all samples
@cache
def draw(sampler: str, real: Any, centred: bool = False) -> Kernel:
    """Return the kernel that draws z (count, d), or s = z - mu where it is centred.

    `whole` says that every four rows share a Philox block.
    """
    exponential, half, zero, numbers = binding(real)(exp), real(0.5), real(0), pointer(real)

    @device
    def posterior(of_all, at):
        mu, logvar = of_all
        return zero if centred else mu[at], exponential(half * logvar[at])

    @device
    def sample(of_one, eps):
        mean, deviation = of_one
        return mean + deviation * eps

    fill = rows_of_draws(sampler, real, posterior, sample)

    def kernel(mu, logvar, noise, begin, count, whole, z):
        fill(noise, begin, count, whole, (mu, logvar), z)

    signature = (numbers, numbers, source_type(sampler, real), int64, int64, int32, numbers)
    return Kernel(f"draw {sampler} {real} {centred}", kernel, signature, THREADS, 2)
