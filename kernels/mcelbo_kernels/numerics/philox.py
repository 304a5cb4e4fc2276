"""Philox4x32-10: a counter and a key in, four random 32-bit words out, with no state between."""

from __future__ import annotations

from typing import Any

import numpy as np

from mcelbo_kernels._compile import inline
from mcelbo_kernels.numerics.words import add, bit_and, bit_xor, multiply, shift_right

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


# c0, c1, c2, c3 = high_2 ^ c1 ^ k0, low_2, high_0 ^ c3 ^ k1, low_0 of (high, low) = multiplier * c
@inline
def turn(counter: Any, k0: Any, k1: Any) -> Any:
    """Return the counter after a round: two multiplications into 64 bits, whose halves are exchanged."""
    c0, c1, c2, c3 = counter
    first = multiply(bit_and(c0, WORD), MULTIPLIER_0)
    second = multiply(bit_and(c2, WORD), MULTIPLIER_1)
    c0 = bit_xor(bit_xor(shift_right(second, HALF), c1), k0)
    c2 = bit_xor(bit_xor(shift_right(first, HALF), c3), k1)
    return c0, second, c2, first


@inline
def rounds(counter: Any, k0: Any, k1: Any) -> Any:
    """Return the four words of Philox4x32-10 at a counter, scalars or vectors.

    Parameters
    ----------
    counter : four uint64 or Words(64)
        Of 64 bits, so that a product needs no widening, of which the lower 32 count: as vectors have a multiplication
        of just these, whatever stands above them is left there.
    k0, k1 : uint64
        The key.

    Returns
    -------
    four uint64 or Words(64), the words in their lower halves
    """
    # written out, so that the keys of all rounds are kept from one vector to the next
    counter = turn(counter, k0, k1)
    counter = turn(counter, add(k0, WEYL_0), add(k1, WEYL_1))
    counter = turn(counter, add(k0, 2 * WEYL_0), add(k1, 2 * WEYL_1))
    counter = turn(counter, add(k0, 3 * WEYL_0), add(k1, 3 * WEYL_1))
    counter = turn(counter, add(k0, 4 * WEYL_0), add(k1, 4 * WEYL_1))
    counter = turn(counter, add(k0, 5 * WEYL_0), add(k1, 5 * WEYL_1))
    counter = turn(counter, add(k0, 6 * WEYL_0), add(k1, 6 * WEYL_1))
    counter = turn(counter, add(k0, 7 * WEYL_0), add(k1, 7 * WEYL_1))
    counter = turn(counter, add(k0, 8 * WEYL_0), add(k1, 8 * WEYL_1))
    return turn(counter, add(k0, 9 * WEYL_0), add(k1, 9 * WEYL_1))


@inline
def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Return the four words of Philox4x32-10 at counter (c0, c1, c2, c3) and key (k0, k1).

    Parameters
    ----------
    c0, c1, c2, c3, k0, k1 : uint64
        32-bit words.

    Returns
    -------
    four uint32

    References
    ----------
    Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.

    Examples
    --------
    >>> zero = np.uint64(0)
    >>> [hex(word) for word in philox(zero, zero, zero, zero, zero, zero)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    w0, w1, w2, w3 = rounds((c0, c1, c2, c3), k0, k1)
    return np.uint32(w0), np.uint32(w1), np.uint32(w2), np.uint32(w3)
