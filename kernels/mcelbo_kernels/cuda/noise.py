"""eps[b, i, k] = Phi^-1(word(seed, b, i, k)): the noise contract on CUDA, by the functions that the CPU has too."""

from __future__ import annotations

from typing import Any, NamedTuple

from mcelbo_kernels.cuda.scalars import binding
from mcelbo_kernels.cuda.seam import device, float32, uint32, uint64
from mcelbo_kernels.numerics import sampling, sobol
from mcelbo_kernels.numerics.normal import normal_float32, normal_float64

ALL_BITS = 0xFFFFFFFF
INJECTED = "injected"  # the caller's own noise, in place of a sampler


class Draws(NamedTuple):
    """How eps is drawn, as device functions.

    A source is (seed, table, n, d, datum_offset, sample_offset): the seed (1,) in device memory; the table is direction
    numbers (d, 32) for "sobol", the noise (B, n, d) itself where it is injected.

    Attributes
    ----------
    one : (source, b, i, k) -> eps[b, i, k]
    four : (source, out, b, i, k) -> None
        Write eps of samples i to i + 3 to `out` (4,); i + sample_offset is a multiple of four.
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
    def four_independent(source, out, b, i, k):
        seed, _table, _n, _d, datum_offset, sample_offset = source
        block = uint64((sample_offset + i) >> 2)
        words = block_words(uint64(seed[0]), uint64(datum_offset + b), block, uint64(k))
        for r in range(4):
            mirrored = antithetic and r & 1
            out[r] = normal(uint32(uint32(words[r - 1 if mirrored else r]) ^ uint32(ALL_BITS if mirrored else 0)))

    @device
    def one_point(source, b, i, k):
        seed, table, _n, _d, datum_offset, sample_offset = source
        return normal(
            uint32(sobol_word(uint64(seed[0]), table, uint64(datum_offset + b), uint64(sample_offset + i), uint64(k)))
        )

    @device
    def four_points(source, out, b, i, k):
        seed, table, _n, _d, datum_offset, sample_offset = source
        hashed, flip, _, _ = block_words(uint64(seed[0]), uint64(datum_offset + b), all_blocks, uint64(k))
        for r in range(4):
            digits = point(table, uint64(sample_offset + i + r), k)
            out[r] = normal(uint32(scrambled(uint32(digits), uint32(hashed), uint32(flip))))

    @device
    def one_given(source, b, i, k):
        _seed, eps, n, d, _datum_offset, _sample_offset = source
        return eps[(b * n + i) * d + k]

    @device
    def four_given(source, out, b, i, k):
        _seed, eps, n, d, _datum_offset, _sample_offset = source
        for r in range(4):
            out[r] = eps[(b * n + i + r) * d + k]

    if sampler == INJECTED:
        return Draws(one_given, four_given)
    return Draws(one_point, four_points) if sampler == "sobol" else Draws(one_independent, four_independent)
