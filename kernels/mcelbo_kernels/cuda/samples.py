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

from functools import lru_cache
from typing import Any

from mcelbo_kernels.cuda.noise import INJECTED, draws
from mcelbo_kernels.cuda.scalars import binding
from mcelbo_kernels.cuda.seam import Kernel, cuda, device, int32, int64, pointer, tuple_of, uint32
from mcelbo_kernels.numerics.elementary import exp

THREADS, ROWS_OF_A_THREAD = 256, 4


def source_type(sampler: str, real: Any) -> Any:
    """Return numba's type of what the noise is drawn from."""
    table = pointer(real if sampler == INJECTED else uint32)
    return tuple_of(pointer(int64), table, int64, int64, int64, int64)


# z[q] = mu[b] + sigma[b] eps[b, i] for rows begin to begin + count - 1 of all samples, four rows of a latent a thread
@lru_cache
def draw(sampler: str, real: Any, centred: bool = False) -> Kernel:
    """Return the kernel that draws z (count, d), or s = z - mu where it is centred.

    `whole` says that every four rows share a Philox block.
    """
    one, four = draws(sampler, real)
    exponential, half, numbers = binding(real)(exp), real(0.5), pointer(real)

    @device
    def deviation(logvar, at):
        return exponential(half * logvar[at])

    @device
    def middle(mu, at):
        return real(0) if centred else mu[at]

    def kernel(mu, logvar, noise, begin, count, whole, z):
        eps = cuda.local.array(4, real)
        n, d = noise[2], noise[3]
        index = int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        row, k = index // d * 4, index % d
        if row < count:
            q = begin + row
            b = q // n
            i = q - b * n
            if whole:
                four(noise, eps, b, i, k)
                mean, sigma = middle(mu, b * d + k), deviation(logvar, b * d + k)
                for r in range(4):
                    z[(row + r) * d + k] = mean + sigma * eps[r]
            else:
                for r in range(min(4, count - row)):
                    b = (q + r) // n
                    at = b * d + k
                    z[(row + r) * d + k] = middle(mu, at) + deviation(logvar, at) * one(noise, b, q + r - b * n, k)

    signature = (numbers, numbers, source_type(sampler, real), int64, int64, int32, numbers)
    return Kernel(f"draw {sampler} {real} {centred}", kernel, signature, THREADS, 2)
