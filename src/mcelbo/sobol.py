"""Direction numbers for sampler="sobol": torch's, which has 30 bits of them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.quasirandom import SobolEngine

from mcelbo_kernels.problem import Draw

BITS, LATENTS = SobolEngine.MAXBIT, SobolEngine.MAXDIM


def check_sobol(draw: Draw, latent: int) -> None:
    """Raise a ValueError if a draw of Sobol points asks for more than the table has."""
    if draw.sampler != "sobol":
        return
    if latent > LATENTS:
        raise ValueError(f"there are {latent} latents: sampler='sobol' has direction numbers for {LATENTS}")
    if draw.sample_offset + draw.num_samples > 2**BITS:
        raise ValueError(
            f"sample_offset is {draw.sample_offset} and num_samples {draw.num_samples}: "
            f"sampler='sobol' has 2**{BITS} points in all"
        )


@lru_cache(maxsize=8)
def _directions(latent: int) -> NDArray[np.uint32]:
    engine = SobolEngine(max(latent, 1))  # type: ignore[no-untyped-call]
    numbers = engine.sobolstate[:latent].numpy()
    return (numbers << (32 - BITS)).astype(np.uint32)


def directions(sampler: str, latent: int) -> NDArray[np.uint32] | None:
    """Return the direction numbers (latent, bits) that `sampler` needs."""
    return _directions(latent) if sampler == "sobol" else None
