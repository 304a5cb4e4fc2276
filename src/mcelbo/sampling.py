"""The noise of a call, as torch tensors: a pure function of seed, datum, sample and latent index."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcelbo.arguments import COMPUTED, Arguments, as_integer, seed_tensor
from mcelbo.backends import noise_on_gpu
from mcelbo.gpu import obstacle
from mcelbo.sobol import check_sobol, directions
from mcelbo_kernels import cpu
from mcelbo_kernels.problem import LARGEST_DATUM, Draw

_library: Any = torch.library.Library("mcelbo", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "noise(Tensor seed, SymInt batch, SymInt num_samples, SymInt latent, str sampler, SymInt datum_offset, "
    "SymInt sample_offset, ScalarType dtype) -> Tensor"
)


def _noise(
    seed: Tensor,
    batch: int,
    num_samples: int,
    latent: int,
    sampler: str,
    datum_offset: int,
    sample_offset: int,
    dtype: torch.dtype,
) -> Tensor:
    table, real = directions(sampler, latent), np.float64 if dtype == torch.float64 else np.float32
    if seed.device.type == "cuda" and obstacle(seed.device) is None:
        draw = Draw(num_samples, 0, sampler, datum_offset, sample_offset, directions=table)
        return noise_on_gpu(draw, batch, latent, real, seed)
    # The kernel runs on the host, so a seed on another device is waited for.
    draw = Draw(num_samples, int(seed), sampler, datum_offset, sample_offset, directions=table)
    return torch.from_numpy(cpu.noise(draw, batch, latent, real)).to(seed.device)


_library.impl("noise", _noise, "CompositeExplicitAutograd")


def _fake_noise(
    seed: Tensor, batch: int, num_samples: int, latent: int, sampler: str, first: int, start: int, dtype: torch.dtype
) -> Tensor:
    return seed.new_empty((batch, num_samples, latent), dtype=dtype)


def _vmap_noise(info: Any, in_dims: tuple[Any, ...], seeds: Tensor, *settings: Any) -> tuple[Tensor, int]:
    drawn = [torch.ops.mcelbo.noise(seed, *settings) for seed in seeds.unbind(in_dims[0])]
    return torch.stack(drawn), 0


torch.library.register_fake("mcelbo::noise", _fake_noise, lib=_library)
torch.library.register_vmap("mcelbo::noise", _vmap_noise, lib=_library)


def draw(arguments: Arguments, first: int, count: int) -> Tensor:
    """Return samples first to first + count of a call's noise, (B, count, d)."""
    if arguments.eps is not None:
        return arguments.eps[:, first : first + count]
    # Antithetic samples come in pairs, so an odd bound is drawn from the pair it splits.
    margin = first % 2 if arguments.sampler == "antithetic" else 0
    extra = (count + margin) % 2 if arguments.sampler == "antithetic" else 0
    batch, latent = arguments.mu.shape
    eps: Tensor = torch.ops.mcelbo.noise(
        arguments.seed,
        batch,
        count + margin + extra,
        latent,
        arguments.sampler,
        arguments.datum_offset,
        arguments.sample_offset + first - margin,
        arguments.x.dtype,
    )
    return eps[:, margin : margin + count]


def noise(
    seed: int | Tensor,
    batch: int,
    num_samples: int,
    latent: int,
    *,
    sampler: str = "iid",
    datum_offset: int = 0,
    sample_offset: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw the standard normal noise that the losses draw for the same seed.

    .. math:: \epsilon_{bik} = \Phi^{-1}\bigl((u_{bik} + \tfrac12) / 2^{32}\bigr)

    u is a word of Philox4x32-10 keyed by the seed and counted by datum b, sample i and latent k, or for "sobol" a point
    that such words scramble. So eps depends on
    nothing else: a datum's noise stays the same when its batch is sliced (`datum_offset`) or its samples are split
    over calls or ranks (`sample_offset`).

    Parameters
    ----------
    seed : int or Tensor
        0 <= seed < 2**63; also as a 0-d int64 tensor.
    batch, num_samples, latent : int
        The numbers of data B, of samples per datum n and of latent dimensions d.
    sampler : {"iid", "antithetic", "sobol"}
        "antithetic": sample 2t + 1 is minus sample 2t; `num_samples` and `sample_offset` must then be even. "sobol":
        sample i is point i of a Sobol sequence, in the order in which `torch.quasirandom.SobolEngine` counts them, Owen
        scrambled independently for every seed, datum and latent. Each sample alone is standard normal; those of one
        datum fill the space evenly and are not independent. There are 2**30 points in up to 21,201 dimensions.
    datum_offset, sample_offset : int
        The global index of the first datum and of the first sample.
    dtype : torch.dtype, optional
        float32 or float64 (by default torch's default dtype); both draw the same noise up to rounding.
    device : torch.device or str, optional
        By default that of a seed tensor, else torch's default device.

    Returns
    -------
    Tensor
        eps, shape (batch, num_samples, latent).

    Raises
    ------
    TypeError
        If a number is not an integer, or the dtype neither float32 nor float64.
    ValueError
        If a number or the seed is out of range, or the sampler unknown.

    References
    ----------
    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; Joe and Kuo, "Constructing
    Sobol sequences with better two-dimensional projections", SIAM Journal on Scientific Computing 30 (2008); Burley,
    "Practical hash-based Owen scrambling", Journal of Computer Graphics Techniques 9 (2020).

    Examples
    --------
    >>> import torch, mcelbo
    >>> eps = mcelbo.noise(seed=7, batch=4, num_samples=10, latent=2)
    >>> eps.shape
    torch.Size([4, 10, 2])
    >>> part = mcelbo.noise(seed=7, batch=1, num_samples=5, latent=2, datum_offset=3, sample_offset=5)
    >>> torch.equal(part, eps[3:, 5:])
    True
    """
    if not isinstance(seed, Tensor):
        seed = as_integer("seed", seed)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in COMPUTED:
        raise TypeError(f"dtype is {dtype}: expected torch.float32 or torch.float64")
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else torch.get_default_device()
    device = torch.empty(0, device=device).device  # "cuda" becomes the current one
    if device.type == "meta":
        raise ValueError("device is meta, which holds no data: expected the CPU or a GPU")
    sizes = {"batch": as_integer("batch", batch), "latent": as_integer("latent", latent)}
    for name, size in sizes.items():
        if size < 0:
            raise ValueError(f"{name} is {size}: expected at least 0")
    settings = Draw(
        as_integer("num_samples", num_samples),
        sampler=sampler,
        datum_offset=as_integer("datum_offset", datum_offset),
        sample_offset=as_integer("sample_offset", sample_offset),
    )
    if settings.datum_offset + sizes["batch"] > LARGEST_DATUM:
        raise ValueError(f"datum_offset is {datum_offset} and the batch {batch}: together they exceed 2**32 data")
    check_sobol(settings, sizes["latent"])
    eps: Tensor = torch.ops.mcelbo.noise(
        seed_tensor(seed, device=device),
        sizes["batch"],
        settings.num_samples,
        sizes["latent"],
        sampler,
        settings.datum_offset,
        settings.sample_offset,
        dtype,
    )
    return eps
