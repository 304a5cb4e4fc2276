"""Philox4x32-10: a counter and a key in, four random 32-bit words out, with no state between."""

from __future__ import annotations

from typing import Any

import numpy as np

from mcelbo_kernels._compile import inline

MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_0, WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
ROUNDS = 10


@inline
def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Return the four words of Philox4x32-10 at counter (c0, c1, c2, c3) and key (k0, k1).

    A round multiplies c0 and c2 into 64 bits, (high, low) = multiplier * c, and exchanges the halves:

        c0, c1, c2, c3 = high_2 ^ c1 ^ k0, low_2, high_0 ^ c3 ^ k1, low_0

    Parameters
    ----------
    c0, c1, c2, c3, k0, k1 : uint64
        32-bit words in 64 bits, so that a product needs no widening. This is what lets a loop over counters become
        one vector multiplication each.

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
    for _ in range(ROUNDS):
        first, second = MULTIPLIER_0 * c0, MULTIPLIER_1 * c2
        c0, c1 = (second >> HALF) ^ c1 ^ k0, second & WORD
        c2, c3 = (first >> HALF) ^ c3 ^ k1, first & WORD
        k0, k1 = (k0 + WEYL_0) & WORD, (k1 + WEYL_1) & WORD
    return np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)
