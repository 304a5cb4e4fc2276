"""eps[b, i, k] = Phi^-1(word(seed, b, i, k)): the noise contract on the CPU, any part of it at a time.

A piece is drawn in loops over whole vectors, on the stack: its words, their normals, and the rows that these belong to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload
from numpy.typing import DTypeLike, NDArray

from mcelbo_kernels._compile import inline, jit, part
from mcelbo_kernels.cpu.pieces import (
    ALL,
    NO_WORD,
    PLACES,
    copy_rows,
    draw_lines,
    draw_words,
    line,
    mirror,
    piece,
    rows_of_line,
    start_lines,
    whole_vectors,
)
from mcelbo_kernels.cpu.scratch import LANES, load_wide, store_lanes
from mcelbo_kernels.numerics.normal import logarithm, quantile
from mcelbo_kernels.numerics.sampling import ALL_BLOCKS
from mcelbo_kernels.numerics.sobol import scipy_directions, table_of
from mcelbo_kernels.problem import Draw, check_draw


class Key(NamedTuple):
    """What independent or antithetic noise is a function of, beside b, i and k."""

    seed: int
    antithetic: bool
    datum_offset: int
    sample_offset: int


class SobolKey(NamedTuple):
    """What the noise of Sobol points is a function of, beside b, i and k."""

    seed: int
    table: NDArray[np.uint32]  # (bits, d)
    datum_offset: int
    sample_offset: int


def key_of(draw: Draw, latent: int) -> Key | SobolKey:
    """Return what `fill` draws d latents from; its type decides what is compiled."""
    if draw.sampler == "sobol" and draw.eps is None:
        directions = scipy_directions(latent) if draw.directions is None else draw.directions[:latent]
        return SobolKey(draw.seed, table_of(directions), draw.datum_offset, draw.sample_offset)
    return Key(draw.seed, draw.sampler == "antithetic", draw.datum_offset, draw.sample_offset)


def fill(key: Key | SobolKey, b: int, i: int, count: int, out: Any) -> None:
    """Write eps of datum b, samples i to i + count - 1 and all latents, into out (count or more, d).

    Parameters
    ----------
    key : Key or SobolKey
    b, i, count : int
        On top of the key's offsets. The samples need not begin or end with a block.
    out : ndarray, float32 or float64
        Its dtype decides the precision; the words are the same. Its rows may lie any distance apart.
    """
    _fill(key, b, i, count, out)


@overload(fill, jit_options={"forceinline": True})
def _fill_by_key(key, b, i, count, out):
    return fill_sobol if any(name == "table" for name in key.fields) else fill_philox


@jit
def _fill(key, b, i, count, out):
    fill(key, b, i, count, out)


def fill_philox(key, b, i, count, out):
    """Fill `out` for a `Key`."""
    datum, first, d = np.uint64(key.datum_offset + b), np.int64(key.sample_offset + i), out.shape[1]
    words, eps = piece(NO_WORD), piece(out.dtype.type(0))
    for k in range(0, d, PLACES):
        width = min(PLACES, d - k)
        block, row = first >> 2, -(first & 3)
        end, depth = ((first + (count - 1)) >> 2) + 1, np.int64(np.uint32(PLACES) // np.uint32(width))
        while block < end:
            # the lower half of a block's number must not overflow within a piece
            height = min(depth, end - block, 2**32 - (block & ALL))
            stride = whole_vectors(height * width)
            draw_words(key.seed, datum, np.uint64(block), k, width, stride, words)
            if key.antithetic:
                mirror(words, stride)
            # of a block on its own, the normals of samples that are not asked for are left out
            low, high = 0, 4 * stride
            if height == 1:
                low, high = max(0, -row) * stride, min(4, count - row) * stride
            normals(words, low, high, eps)
            copy_rows(eps, 0, stride, width, 2, height, width, row, count, out, k)
            row += 4 * height
            block += height


def fill_sobol(key, b, i, count, out):
    """Fill `out` for a `SobolKey`."""
    datum, first, d = np.uint64(key.datum_offset + b), np.int64(key.sample_offset + i), out.shape[1]
    words, eps = piece(NO_WORD), piece(out.dtype.type(0))
    points, seeds, flips = line(NO_WORD), line(NO_WORD), line(NO_WORD)
    for k in range(0, d, PLACES):
        width = min(PLACES, d - k)
        shift = rows_of_line(width, count)
        block, stride, length = first >> shift, whole_vectors(width), whole_vectors(width << shift)
        row, end = (block << shift) - first, ((first + (count - 1)) >> shift) + 1
        depth = np.int64(np.uint32(PLACES) // np.uint32(length))
        draw_words(key.seed, datum, ALL_BLOCKS, k, width, stride, words)
        start_lines(key.table, block, shift, k, width, stride, words, points, seeds, flips)
        while block < end:
            height = min(depth, end - block)
            draw_lines(key.table, block, end, height, shift, k, width, length, words, points, seeds, flips)
            normals(words, 0, height * length, eps)
            begin, by_block, power, blocks, run, top = 0, length, shift, height, width, row
            if length == width << shift and out.strides[0] == width * out.itemsize:
                # rows without gaps are one long row
                low, high = max(0, -row), min(height << shift, count - row)
                begin, by_block, power, blocks, run, top = low * width, LANES, 0, 1, (high - low) * width, row + low
            copy_rows(eps, begin, width, by_block, power, blocks, run, top, count, out, k)
            row += height << shift
            block += height


@part
def normals(words, low, high, eps):
    """Write the normals of words[low:high], and of what makes the last vector whole, to the same places of eps."""
    like = eps.dtype.type(0)
    for s in range(low, high, 2 * LANES):
        store_lanes(eps, s, logarithm(load_wide(words, s), like))
    for s in range(low, high, 2 * LANES):
        store_lanes(eps, s, quantile(load_wide(words, s), load_wide(eps, s)))


@inline
def copy(source: Any, target: Any) -> None:
    """Write source to the beginning of target."""
    for s in range(source.size):
        target[s] = source[s]


@jit
def _fill_batch(key: Key | SobolKey, out: Any) -> None:
    """Write eps into out (B, n, d)."""
    for b in range(out.shape[0]):
        fill(key, b, 0, out.shape[1], out[b])


def noise(draw: Draw, batch: int, latent: int, dtype: DTypeLike) -> NDArray[Any]:
    """Return eps[b,i,k], a pure function of (seed, b, i, k).

    Parameters
    ----------
    draw : Draw
        Its `eps`, where it has one, is returned in `dtype`.
    batch, latent : int
        B and d.
    dtype : float32 or float64
        Both round the same numbers.

    Returns
    -------
    ndarray, shape (B, n, d)

    Raises
    ------
    ValueError
        If injected noise has another shape, or a datum's index exceeds 32 bits.

    Examples
    --------
    >>> whole, last = noise(Draw(4, seed=7), 3, 2, "float32"), noise(Draw(4, seed=7, datum_offset=2), 1, 2, "float32")
    >>> bool((whole[2:] == last).all())
    True
    """
    check_draw(draw, batch, latent, None if draw.eps is None else draw.eps.shape)
    if draw.eps is not None:
        return draw.eps.astype(dtype, copy=False)
    out = np.empty((batch, draw.num_samples, latent), dtype)
    _fill_batch(key_of(draw, latent), out)
    return out
