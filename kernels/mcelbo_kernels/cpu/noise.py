"""eps[b, i, k] = Phi^-1(word(seed, b, i, k)): the noise contract on the CPU, any part of it at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mcelbo_kernels._compile import inline, jit
from mcelbo_kernels.numerics.normal import logarithm, quantile
from mcelbo_kernels.numerics.sampling import block_words
from mcelbo_kernels.problem import Draw, check_draw

# Philox blocks in flight: their words, logarithms and normals stay in the nearest cache
PLACES = 256
# below this many latents a vector goes across blocks
FEW = 8
TWO, THREE = np.uint64(2), np.uint64(3)
NONE, ALL = np.uint64(0), np.uint64(2**64 - 1)


@partial(jit, _nrt=True)
def fill(seed: int, antithetic: bool, datum: int, first: int, count: int, out: Any) -> None:
    """Write eps of one datum, samples first to first + count - 1 and all latents, into out (count or more, d).

    Parameters
    ----------
    seed, datum, first, count : int
        The samples need not begin or end with a block of four.
    antithetic : bool
    out : ndarray, float32 or float64
        Its dtype decides the precision; the words are the same.
    """
    d = out.shape[1]
    like = out.dtype.type(0)
    seed_, datum_ = np.uint64(seed), np.uint64(datum)
    first_block, offset = np.uint64(first) >> TWO, np.int64(np.uint64(first) & THREE)
    blocks = (offset + count + 3) // 4
    # where all samples share one block, the others' words are not turned into normals
    begin, end = (offset, offset + count) if blocks == 1 else (0, 4)
    drawn = np.empty(4 * PLACES, np.uint32)  # (4, stride): sample j of block q + t and latent k + s
    logarithms, eps = np.empty(4 * PLACES, out.dtype), np.empty(4 * PLACES, out.dtype)
    for k in range(0, d, PLACES):
        width = min(PLACES, d - k)
        depth = PLACES // width
        for q in range(0, blocks, depth):
            height = min(depth, blocks - q)
            stride = (height * width + 15) // 16 * 16  # whole vectors: what lies between is computed and not used
            # the loop that a vector goes along is the one over blocks where there are few latents
            few = width < FEW
            inside, outer, inner = (ALL, width, height) if few else (NONE, height, width)
            draw_words(seed_, datum_, first_block + np.uint64(q), np.uint64(k), inside, outer, inner, stride, drawn)
            if antithetic:
                for s in range(stride):
                    drawn[stride + s], drawn[3 * stride + s] = ~drawn[s], ~drawn[2 * stride + s]
            wanted = drawn[begin * stride : end * stride]
            for s in range(wanted.size):
                logarithms[s] = logarithm(wanted[s], like)
            for s in range(wanted.size):
                eps[s] = quantile(wanted[s], logarithms[s])
            for j in range(begin, end):
                # sample j of block q + t is row 4 (q + t) + j - offset
                row, place = 4 * q + j - offset, (j - begin) * stride
                low, high = (1 if row < 0 else 0), min(height, (count - row + 3) // 4)
                if few:
                    for s in range(width):
                        copy(eps[place + s * height + low : place + s * height + high], out[row + 4 * low :: 4, k + s])
                else:
                    for t in range(low, high):
                        copy(eps[place + t * width : place + (t + 1) * width], out[row + 4 * t, k : k + width])


@inline
def copy(source: Any, target: Any) -> None:
    """Write source to the beginning of target."""
    for s in range(source.size):
        target[s] = source[s]


@jit
def draw_words(
    seed: Any, datum: Any, block: Any, latent: Any, blocks_inside: Any, outer: int, inner: int, stride: int, drawn: Any
) -> None:
    """Write the iid words of sample j of consecutive blocks and latents from drawn[j stride] on.

    The inner loop runs over blocks where `blocks_inside` is all ones, over latents where it is 0: bits, not a branch,
    so that the rounds of Philox are compiled once.
    """
    latents_inside = ~blocks_inside
    d0, d1, d2, d3 = drawn[:stride], drawn[stride : 2 * stride], drawn[2 * stride : 3 * stride], drawn[3 * stride :]
    for o in range(outer):
        for i in range(inner):
            u, v = np.uint64(o), np.uint64(i)
            t, s = (v & blocks_inside) | (u & latents_inside), (u & blocks_inside) | (v & latents_inside)
            w0, w1, w2, w3 = block_words(seed, datum, block + t, latent + s)
            place = o * inner + i
            d0[place], d1[place], d2[place], d3[place] = w0, w1, w2, w3


@jit
def _fill_batch(seed: int, antithetic: bool, datum_offset: int, sample_offset: int, out: Any) -> None:
    """Write eps into out (B, n, d)."""
    for b in range(out.shape[0]):
        fill(seed, antithetic, datum_offset + b, sample_offset, out.shape[1], out[b])


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
    _fill_batch(draw.seed, draw.sampler == "antithetic", draw.datum_offset, draw.sample_offset, out)
    return out
