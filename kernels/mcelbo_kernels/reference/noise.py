"""The noise of `reference`: Philox4x32-10 and Sobol points in uint64, and the inverse normal CDF in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcelbo_kernels.numerics.sobol import scipy_directions
from mcelbo_kernels.problem import Draw, check_draw

Real = NDArray[np.float64]
Words = NDArray[np.uint64]

WORD = np.uint64(2**32 - 1)
_HALF = np.uint64(32)  # bits; as an unsigned scalar, since NumPy's stubs take a shift by an int for signed
_normal_quantile: Callable[[Real], Real] = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])


def philox(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Words, Words, Words, Words]:
    """Return the four 32-bit words of Philox4x32-10 at each counter, held in uint64.

    Parameters
    ----------
    counter : four integer arrays or integers
        32-bit words, broadcast against each other.
    key : two integers
        32-bit words.

    References
    ----------
    Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.

    Examples
    --------
    >>> [hex(word) for word in philox((0, 0, 0, 0), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3, k0, k1 = (np.asarray(word, np.uint64) for word in (*counter, *key))
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> _HALF) ^ c1 ^ k0, second & WORD, (first >> _HALF) ^ c3 ^ k1, first & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def sobol_points(directions: NDArray[np.uint32], i: Words) -> Words:
    """Return points `i` of a Sobol sequence in 32 bits, shape (*i.shape, d).

    The direction numbers (d, bits) of the bits that are set in the Gray code i ^ (i // 2), added modulo 2.
    """
    gray = (i ^ (i >> np.uint64(1)))[..., None]
    total = np.zeros((*i.shape, len(directions)), np.uint64)
    for bit, numbers in enumerate(directions.T.astype(np.uint64)):
        total ^= np.where(gray >> np.uint64(bit) & np.uint64(1), numbers, np.uint64(0))
    return total


def reversed_bits(word: Words) -> Words:
    """Return 32-bit words with their bits in reverse."""
    flipped = np.zeros_like(word)
    for bit in range(32):
        flipped |= (word >> np.uint64(bit) & np.uint64(1)) << np.uint64(31 - bit)
    return flipped


def owen_scrambled(point: Words, seed: Words) -> Words:
    """Flip each bit or not, at random but by the bits above it alone.

    A hash whose every bit depends on lower bits alone does that to the bits in reverse; this one is Vegdahl's.
    """
    x = reversed_bits(point)
    x = x ^ (x * np.uint64(0x3D20ADEA) & WORD)
    x = x + seed & WORD
    x = x * (seed >> np.uint64(16) | np.uint64(1)) & WORD
    x = x ^ (x * np.uint64(0x05526C56) & WORD)
    x = x ^ (x * np.uint64(0x53A22864) & WORD)
    return reversed_bits(x)


def sobol_words(draw: Draw, batch: int, latent: int) -> Words:
    """Return the 32 random bits behind each eps[b,i,k] of Sobol points, shape (B, n, d).

    Point i is scrambled by one word of the counter (k, all ones, all ones, b), which no i // 4 reaches, and the word
    after it is added modulo 2.
    """
    directions = scipy_directions(latent) if draw.directions is None else draw.directions[:latent]
    b = np.uint64(draw.datum_offset) + np.arange(batch, dtype=np.uint64)[:, None, None]
    i = np.uint64(draw.sample_offset) + np.arange(draw.num_samples, dtype=np.uint64)
    k = np.arange(latent, dtype=np.uint64)
    seed, flip, _, _ = philox((k, WORD, WORD, b), (draw.seed % 2**32, draw.seed // 2**32))
    return owen_scrambled(sobol_points(directions, i), seed) ^ flip


def words(draw: Draw, batch: int, latent: int) -> Words:
    """Return the 32 random bits behind each eps[b,i,k], shape (B, n, d).

    Word i % 4 of Philox at key (seed low, seed high) and counter (k, i // 4 low, i // 4 high, b); b and i count from
    the draw's offsets. "antithetic": an even i as above, an odd i the complement of the word of i - 1. "sobol": see
    `sobol_words`.
    """
    if draw.sampler == "sobol":
        return sobol_words(draw, batch, latent)
    b = np.uint64(draw.datum_offset) + np.arange(batch, dtype=np.uint64)[:, None, None]
    i = np.uint64(draw.sample_offset) + np.arange(draw.num_samples, dtype=np.uint64)[:, None]
    k = np.arange(latent, dtype=np.uint64)
    mirrored = (i % 2 == 1) & (draw.sampler == "antithetic")
    i = np.where(mirrored, i - 1, i)
    block = i // 4
    four = philox((k, block & WORD, block >> _HALF, b), (draw.seed % 2**32, draw.seed // 2**32))
    word = np.choose((i % 4).astype(np.intp), four)
    return np.where(mirrored, WORD - word, word)


def normal(word: Words) -> Real:
    """Return Phi^-1((word + 1/2) / 2^32), within 1e-15 relative and exactly odd about the centre."""
    # p = (distance to the nearer end + 1/2) / 2^32 is exact in float64, and so is 1/2 - p
    p = (2.0 * np.minimum(word, WORD - word) + 1.0) / 2.0**33
    return np.where(word > WORD // 2, -1.0, 1.0) * _normal_quantile(p)


def noise(draw: Draw, batch: int, latent: int) -> Real:
    """Return eps[b,i,k], a pure function of (seed, b, i, k).

    Parameters
    ----------
    draw : Draw
        Its `eps`, where it has one, is returned as it is, in float64.
    batch, latent : int
        B and d.

    Returns
    -------
    ndarray, shape (B, n, d), float64

    Raises
    ------
    ValueError
        If injected noise has another shape, or a datum's index exceeds 32 bits.

    Examples
    --------
    >>> whole, last = noise(Draw(4, seed=7), 3, 2), noise(Draw(4, seed=7, datum_offset=2), 1, 2)
    >>> bool((whole[2:] == last).all())
    True
    """
    check_draw(draw, batch, latent, None if draw.eps is None else draw.eps.shape)
    return normal(words(draw, batch, latent)) if draw.eps is None else draw.eps.astype(np.float64)
