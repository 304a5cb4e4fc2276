"""A piece of noise: the words of its blocks, and where in the result its normals belong.

The lanes of a vector are consecutive pairs of block and latent, the latent counting fastest, so that every lane and
every word of Philox is of use however few latents there are. A block is four samples of Philox. Of Sobol points it is a
line: a power of two of samples, as many as make up some vectors.
"""

from __future__ import annotations

import numpy as np

from mcelbo_kernels._compile import part
from mcelbo_kernels.cpu.scratch import (
    LANES,
    load_lanes,
    stack_array,
    store_lanes,
    store_ones_in_turn,
    store_twos_in_turn,
)
from mcelbo_kernels.numerics.philox import HALF, WORD, rounds
from mcelbo_kernels.numerics.sobol import point, scrambled
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

# Pairs of block and latent in a piece: four words each and their normals stay in the nearest cache.
PLACES = 256
# A line is of about so many words.
LINE = 64
NO_WORD, ALL = np.uint32(0), 2**32 - 1

piece = stack_array(4 * PLACES + 2 * LANES)  # vectors may begin with the last normal of a row
line = stack_array(PLACES)
vector = stack_array(LANES)


@part
def whole_vectors(size):
    """Round up to a number of whole vectors."""
    return (size + LANES - 1) // LANES * LANES


@part
def draw_words(seed, datum, block, k, width, stride, words):
    """Write word j of pair p, of block `block` + p // width and latent k + p % width, to words[j stride + p]."""
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


@part
def mirror(words, stride):
    """Give an odd sample the complement of the word before it: "antithetic", as Phi^-1 is odd in complements."""
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
            high, low, whole = bit * table.shape[1] + k, (shift - 1) * table.shape[1] + k, width // LANES * LANES
            for latent in range(0, whole, LANES):
                change = load_lanes(table, high + latent)
                if shift:
                    change = bit_xor(change, load_lanes(table, low + latent))
                for s in range(latent, width << shift, width):
                    store_lanes(points, s, bit_xor(load_lanes(points, s), change))
            for latent in range(whole, width):
                step = table[bit, k + latent]
                if shift:
                    step ^= table[shift - 1, k + latent]
                for s in range(latent, width << shift, width):
                    points[s] ^= step


@part
def copy_rows(eps, begin, by_row, by_block, shift, height, width, row, count, out, k):
    """Write eps[begin + j by_row + t by_block + l] to out[row + (t << shift) + j, k + l], l below `width`.

    Rows are written from 0 to count - 1 alone. Nothing is called for a row: counting references to arrays would cost
    more than a short row does.
    """
    pitch = out.strides[0] // out.itemsize
    t = 0
    while t < height:
        target, wide = row + (t << shift), LANES // 2 if width == 2 else LANES
        if by_block <= 2 and pitch == width and target >= 0 and t + wide <= height and target + 4 * wide <= count:
            place, start = begin + t * by_block, target * width
            w, x = load_lanes(eps, place), load_lanes(eps, place + by_row)
            y, z = load_lanes(eps, place + 2 * by_row), load_lanes(eps, place + 3 * by_row)
            if width == 1:
                store_ones_in_turn(out, start, w, x, y, z)
            else:
                store_twos_in_turn(out, start, w, x, y, z)
            t += wide
            continue
        for j in range(1 << shift):
            if not 0 <= target + j < count:
                continue
            place, start = begin + t * by_block + j * by_row, (target + j) * pitch + k
            if width >= LANES:
                for s in range(0, width - LANES, LANES):
                    store_lanes(out, start + s, load_lanes(eps, place + s))
                store_lanes(out, start + width - LANES, load_lanes(eps, place + width - LANES))
            elif pitch == width and start + LANES <= count * pitch:
                # what it writes into the rows after this one is written again
                store_lanes(out, start, load_lanes(eps, place))
            else:
                for s in range(width):
                    out[target + j, k + s] = eps[place + s]
        t += 1
