"""eps[b, i, k] = Phi^-1(word(seed, b, i, k)): the noise contract on CUDA, by the functions that the CPU has too."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from mcelbo_kernels.cuda.scalars import binding
from mcelbo_kernels.cuda.seam import (
    Kernel,
    cuda,
    device,
    float32,
    float64,
    int32,
    int64,
    pointer,
    tuple_of,
    uint32,
    uint64,
)
from mcelbo_kernels.cuda.target import Target
from mcelbo_kernels.numerics import sampling, sobol
from mcelbo_kernels.numerics.normal import normal_float32, normal_float64
from mcelbo_kernels.numerics.sobol import latents_first, scipy_directions
from mcelbo_kernels.problem import Draw, check_draw

ALL_BITS = 0xFFFFFFFF
INJECTED = "injected"  # the caller's own noise, in place of a sampler
THREADS, ROWS_OF_A_THREAD = 256, 4


class Draws(NamedTuple):
    """How eps is drawn, as device functions.

    A source is (seed, table, n, d, datum_offset, sample_offset): the seed (1,) in device memory; the table is direction
    numbers (d, 32) for "sobol", the noise (B, n, d) itself where it is injected.

    Attributes
    ----------
    one : (source, b, i, k) -> eps[b, i, k]
    four : (source, out, b, i, k, first, end) -> None
        Write eps of samples i + first to i + end - 1 to `out` (4,), from number `first` on; i + sample_offset is a
        multiple of four.
    """

    one: Any
    four: Any


def draws(sampler: str, real: Any) -> Draws:
    """Return how a sampler's noise is drawn in a precision."""
    bind = binding(real)
    normal = bind(normal_float32 if real == float32 else normal_float64)
    word, block_words = bind(sampling.word), bind(sampling.block_words)
    sobol_word, scrambled, point = bind(sampling.sobol_word), bind(sobol.scrambled), bind(sobol.point)
    antithetic, all_blocks = sampler == "antithetic", uint64(sampling.ALL_BLOCKS)

    @device
    def one_independent(source, b, i, k):
        seed, _table, _n, _d, datum_offset, sample_offset = source
        return normal(
            uint32(word(uint64(seed[0]), antithetic, uint64(datum_offset + b), uint64(sample_offset + i), uint64(k)))
        )

    @device
    def four_independent(source, out, b, i, k, first, end):
        seed, _table, _n, _d, datum_offset, sample_offset = source
        block = uint64((sample_offset + i) >> 2)
        words = block_words(uint64(seed[0]), uint64(datum_offset + b), block, uint64(k))
        for r in range(4):
            if first <= r < end:
                mirrored = antithetic and r & 1
                out[r] = normal(uint32(uint32(words[r - 1 if mirrored else r]) ^ uint32(ALL_BITS if mirrored else 0)))

    @device
    def one_point(source, b, i, k):
        seed, table, _n, _d, datum_offset, sample_offset = source
        return normal(
            uint32(sobol_word(uint64(seed[0]), table, uint64(datum_offset + b), uint64(sample_offset + i), uint64(k)))
        )

    @device
    def four_points(source, out, b, i, k, first, end):
        seed, table, _n, _d, datum_offset, sample_offset = source
        hashed, flip, _, _ = block_words(uint64(seed[0]), uint64(datum_offset + b), all_blocks, uint64(k))
        for r in range(4):
            if first <= r < end:
                digits = point(table, uint64(sample_offset + i + r), k)
                out[r] = normal(uint32(scrambled(uint32(digits), uint32(hashed), uint32(flip))))

    @device
    def one_given(source, b, i, k):
        _seed, eps, n, d, _datum_offset, _sample_offset = source
        return eps[(b * n + i) * d + k]

    @device
    def four_given(source, out, b, i, k, first, end):
        _seed, eps, n, d, _datum_offset, _sample_offset = source
        for r in range(4):
            if first <= r < end:
                out[r] = eps[(b * n + i + r) * d + k]

    if sampler == INJECTED:
        return Draws(one_given, four_given)
    return Draws(one_point, four_points) if sampler == "sobol" else Draws(one_independent, four_independent)


def source_type(sampler: str, real: Any) -> Any:
    """Return numba's type of what the noise is drawn from."""
    table = pointer(real if sampler == INJECTED else uint32)
    return tuple_of(pointer(int64), table, int64, int64, int64, int64)


def source_of(draw: Draw, latent: int, seed: Any, target: Target) -> tuple[Any, ...]:
    """Return what the noise is drawn from; `seed` (1,) lies in the device's memory."""
    table = seed if draw.eps is None else draw.eps
    if draw.sampler == "sobol" and draw.eps is None:
        directions = scipy_directions(latent) if draw.directions is None else draw.directions[:latent]
        table = target.upload(latents_first(directions))
    return seed, table, draw.num_samples, latent, draw.datum_offset, draw.sample_offset


def in_blocks(draw: Draw, begin: int) -> bool:
    """Tell whether every four rows from row `begin` of all samples on share a Philox block."""
    return draw.num_samples % 4 == 0 and begin % 4 == 0 and draw.sample_offset % 4 == 0


def blocks_for(count: int, latent: int) -> int:
    """Return how many blocks of `rows_of_draws` fill so many rows."""
    return -(-(-(-count // ROWS_OF_A_THREAD) * latent) // THREADS)


# out[q] = f(of_one(of_all, b), eps[b, i]) of rows q, with (b, i) = divmod(begin + q, n); neighbouring threads have
# neighbouring latents
def rows_of_draws(sampler: str, real: Any, of_one: Any, f: Any) -> Any:
    """Return the device function that fills rows `begin` to begin + count - 1 of all samples, four a thread.

    Parameters
    ----------
    sampler : str
    real : type of numba
    of_one : device function (of_all, b d + k) -> what f needs to know of a datum's latent
    f : device function (that, eps) -> number

    Returns
    -------
    device function (source, begin, count, whole, of_all, out (count, d)) -> None
        `whole` as of `in_blocks`.
    """
    one, four = draws(sampler, real)

    @device
    def fill(source, begin, count, whole, of_all, out):
        eps = cuda.local.array(ROWS_OF_A_THREAD, real)
        n, d = source[2], source[3]
        index = int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        row, k = index // d * ROWS_OF_A_THREAD, index % d
        if row < count:
            q = begin + row
            b = q // n
            i = q - b * n
            if whole:
                four(source, eps, b, i, k, int32(0), int32(ROWS_OF_A_THREAD))
                known = of_one(of_all, b * d + k)
                for r in range(ROWS_OF_A_THREAD):
                    out[(row + r) * d + k] = f(known, eps[r])
            else:
                for r in range(min(ROWS_OF_A_THREAD, count - row)):
                    b = (q + r) // n
                    number = one(source, b, q + r - b * n, k)
                    out[(row + r) * d + k] = f(of_one(of_all, b * d + k), number)

    return fill


# out[b, i] = eps[b, i]
@cache
def fill_noise(sampler: str, real: Any) -> Kernel:
    """Return the kernel that draws eps (count, d) itself."""

    @device
    def nothing(of_all, at):
        return of_all

    @device
    def itself(known, eps):
        return eps

    fill = rows_of_draws(sampler, real, nothing, itself)

    def kernel(source, count, whole, out):
        fill(source, 0, count, whole, 0, out)

    signature = (source_type(sampler, real), int64, int32, pointer(real))
    return Kernel(f"fill_noise {sampler} {real}", kernel, signature, THREADS, 2)


def noise(draw: Draw, batch: int, latent: int, dtype: DTypeLike, seed: Any, target: Target) -> Any:
    """Return eps[b,i,k], a pure function of (seed, b, i, k).

    Parameters
    ----------
    draw : Draw
        Whose `seed` and `eps` do not count.
    batch, latent : int
        B and d.
    dtype : float32 or float64
        Both round the same numbers.
    seed : array of int64, shape (1,)
        Read by the kernel.
    target : Target

    Returns
    -------
    array, flat, of B n d numbers

    Raises
    ------
    ValueError
        If a datum's index exceeds 32 bits, or there are too few direction numbers.
    """
    check_draw(draw, batch, latent, None)
    count = batch * draw.num_samples
    result = target.empty(count * latent, np.dtype(dtype))
    if count * latent:
        kernel = fill_noise(draw.sampler, float32 if np.dtype(dtype) == np.float32 else float64)
        source = source_of(replace(draw, eps=None), latent, seed, target)
        target.launch(kernel, (blocks_for(count, latent), 1), source, count, int(in_blocks(draw, 0)), result)
    return result
