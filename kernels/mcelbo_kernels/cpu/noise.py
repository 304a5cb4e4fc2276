"""eps[b, i, k] = Phi^-1(word(seed, b, i, k)): the noise contract on the CPU, any part of it at a time.

A piece is drawn in three loops, each over whole vectors and on the stack: its words, their normals, and the rows that
the normals belong to. The lanes of a vector are consecutive pairs of block and latent, the latent counting fastest, so
that every lane and every word of a Philox block is of use however few latents there are. A block is four samples of
Philox; of Sobol points it is as many samples as make up some vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload
from numpy.typing import DTypeLike, NDArray

from mcelbo_kernels._compile import inline, jit, part
from mcelbo_kernels.cpu.scratch import LANES, load_lanes, load_wide, stack_array, store_lanes, store_ones_in_turn, store_twos_in_turn
from mcelbo_kernels.numerics.normal import logarithm, quantile
from mcelbo_kernels.numerics.philox import HALF, WORD, rounds
from mcelbo_kernels.numerics.sobol import point, scipy_directions, scrambled, table_of
from mcelbo_kernels.numerics.words import (
    add,
    at_least,
    bit_and,
    bit_xor,
    narrowed,
    subtract,
    trailing_zeros,
    widened,
    words_like,
)
from mcelbo_kernels.problem import Draw, check_draw

# Pairs of block and latent in a piece: four words each and their normals stay in the nearest cache.
PLACES = 256
# Sobol points are taken in lines of about so many words.
LINE = 64
ALL_BLOCKS, NO_WORD, ALL = np.uint64(2**64 - 1), np.uint32(0), 2**32 - 1

piece = stack_array(4 * PLACES + 2 * LANES)  # vectors may begin with the last normal of a row
line = stack_array(PLACES)
vector = stack_array(LANES)


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
    datum, first, d = np.uint64(key.datum_offset + b), np.int64(key.sample_offset + i), out.shape[1]
    words, eps = piece(NO_WORD), piece(out.dtype.type(0))
    for k in range(0, d, PLACES):
        width = min(PLACES, d - k)
        block, row = first >> 2, -(first & 3)
        end, depth = (first + count + 3) >> 2, np.int64(np.uint32(PLACES) // np.uint32(width))
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
            copy_rows(eps, stride, width, 2, height, width, row, count, out, k)
            row += 4 * height
            block += height


def fill_sobol(key, b, i, count, out):
    datum, first, d = np.uint64(key.datum_offset + b), np.int64(key.sample_offset + i), out.shape[1]
    words, eps = piece(NO_WORD), piece(out.dtype.type(0))
    points, seeds, flips = line(NO_WORD), line(NO_WORD), line(NO_WORD)
    for k in range(0, d, PLACES):
        width = min(PLACES, d - k)
        shift = rows_of_line(width, count)
        block, stride, length = first >> shift, whole_vectors(width), whole_vectors(width << shift)
        row, end = (block << shift) - first, ((first + count - 1) >> shift) + 1
        depth = np.int64(np.uint32(PLACES) // np.uint32(length))
        draw_words(key.seed, datum, ALL_BLOCKS, k, width, stride, words)
        start_lines(key.table, block, shift, k, width, stride, words, points, seeds, flips)
        while block < end:
            height = min(depth, end - block)
            draw_lines(key.table, block, end, height, shift, k, width, length, words, points, seeds, flips)
            normals(words, 0, height * length, eps)
            if length == width << shift and out.strides[0] == width * out.itemsize:
                low, high = max(0, -row), min(height << shift, count - row)
                copy_row(eps, low * width, (high - low) * width, row + low, count, width, out, k)
            else:
                copy_rows(eps, width, length, shift, height, width, row, count, out, k)
            row += height << shift
            block += height


@part
def normals(words, low, high, eps):
    like = eps.dtype.type(0)
    for s in range(low, high, 2 * LANES):
        store_lanes(eps, s, logarithm(load_wide(words, s), like))
    for s in range(low, high, 2 * LANES):
        store_lanes(eps, s, quantile(load_wide(words, s), load_wide(eps, s)))


@part
def whole_vectors(size):
    """Round up to a number of whole vectors."""
    return (size + LANES - 1) // LANES * LANES


# words[j stride + p] = word j of pair p: block + p // width, latent k + p % width
@part
def draw_words(seed, datum, block, k, width, stride, words):
    latents, blocks = vector(NO_WORD), vector(NO_WORD)
    latent, above = 0, 0
    for p in range(LANES):
        latents[p], blocks[p] = k + latent, above
        latent += 1
        if latent == width:
            latent, above = 0, above + 1
    # LANES pairs on it is so many latents and blocks on, and a block more where that is beyond the last latent
    latents_on, blocks_on = np.uint32(latent), np.uint32(above)
    c0, c1 = load_lanes(latents, 0), add(load_lanes(blocks, 0), block)
    c2, c3 = words_like(widened(c0), block >> HALF), words_like(widened(c0), datum)
    k0, k1 = np.uint64(seed) & WORD, np.uint64(seed) >> HALF
    for p in range(0, stride, LANES):
        four = rounds((widened(c0), widened(c1), c2, c3), k0, k1)
        for j in range(4):
            store_lanes(words, j * stride + p, narrowed(four[j]))
        c0 = add(c0, latents_on)
        beyond = at_least(c0, k + width)
        c0 = subtract(c0, bit_and(beyond, width))
        c1 = subtract(add(c1, blocks_on), beyond)


# "antithetic": an odd sample takes the complement of the word before it, and Phi^-1 is odd in complements
@part
def mirror(words, stride):
    for s in range(0, stride, LANES):
        for pair in (0, 2 * stride):
            store_lanes(words, pair + stride + s, bit_xor(load_lanes(words, pair + s), ALL))


@part
def rows_of_line(width, count):
    """Return the power of two that is the number of samples taken at once."""
    shift = 0
    while width << (shift + 1) <= LINE and 1 << shift < count:
        shift += 1
    return shift


@part
def start_lines(table, block, shift, k, width, stride, words, points, seeds, flips):
    """Write line `block` in reversed bits, and what scrambles it from the words at `ALL_BLOCKS`."""
    first = np.uint64(block << shift)
    for latent in range(width):
        drawn = point(table, first, k + latent)
        for r in range(1 << shift):
            s = r * width + latent
            if r:
                drawn ^= table[np.int64(trailing_zeros(first + np.uint64(r))), k + latent]
            points[s], seeds[s], flips[s] = drawn, words[latent], words[stride + latent]


@part
def draw_lines(table, block, end, height, shift, k, width, length, words, points, seeds, flips):
    """Write the words of `height` lines, and leave the line after them in `points` where there is one."""
    for t in range(height):
        for s in range(0, length, LANES):
            drawn = scrambled(load_lanes(points, s), load_lanes(seeds, s), load_lanes(flips, s))
            store_lanes(words, t * length + s, drawn)
        following = block + t + 1
        if following < end:
            # a line on, the Gray code of a sample differs in one bit from `shift` on, and in the one below `shift`
            bit = shift + np.int64(trailing_zeros(np.uint64(following)))
            for latent in range(width):
                step = table[bit, k + latent]
                if shift:
                    step ^= table[shift - 1, k + latent]
                for r in range(1 << shift):
                    points[r * width + latent] ^= step


# out[row + (t << shift) + j, k + l] = eps[j by_row + t by_block + l], rows 0 to count - 1 alone
@part
def copy_rows(eps, by_row, by_block, shift, height, width, row, count, out, k):
    pitch = out.strides[0] // out.itemsize
    t = 0
    while t < height:
        target = row + (t << shift)
        wide = LANES // 2 if width == 2 else LANES
        if by_block <= 2 and pitch == width and target >= 0 and t + wide <= height and target + 4 * wide <= count:
            place, start = t * by_block, target * width
            w, x = load_lanes(eps, place), load_lanes(eps, place + by_row)
            y, z = load_lanes(eps, place + 2 * by_row), load_lanes(eps, place + 3 * by_row)
            if width == 1:
                store_ones_in_turn(out, start, w, x, y, z)
            else:
                store_twos_in_turn(out, start, w, x, y, z)
            t += wide
        else:
            for j in range(max(0, -target), min(1 << shift, count - target)):
                copy_row(eps, j * by_row + t * by_block, width, target + j, count, pitch, out, k)
            t += 1


@part
def copy_row(eps, place, width, row, count, pitch, out, k):
    start = row * pitch + k
    if width >= LANES:
        for s in range(0, width - LANES, LANES):
            store_lanes(out, start + s, load_lanes(eps, place + s))
        store_lanes(out, start + width - LANES, load_lanes(eps, place + width - LANES))
    elif pitch == width and start + LANES <= count * pitch:
        # what it writes into the rows after this one is written again
        store_lanes(out, start, load_lanes(eps, place))
    else:
        for s in range(width):
            out[row, k + s] = eps[place + s]


@part
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
