"""Which random word belongs to eps[b, i, k], one at a time.

"iid" takes word i % 4 of Philox at key (seed low, seed high) and counter (k, i // 4 low, i // 4 high, b): a block
serves one latent of four consecutive samples, so that d = 1 wastes none of it. "sobol" takes point i, scrambled by two
words at counter (k, all ones, all ones, b), which i // 4 never reaches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mcelbo_kernels._compile import inline
from mcelbo_kernels.numerics.philox import HALF, WORD, philox
from mcelbo_kernels.numerics.sobol import point, scrambled

TWO, THREE = np.uint64(2), np.uint64(3)
ALL_BLOCKS = np.uint64(2**64 - 1)


@inline
def block_words(seed: Any, b: Any, block: Any, k: Any) -> Any:
    """Return the iid words of samples 4 block to 4 block + 3 of datum b and latent k; all arguments uint64."""
    return philox(k, block & WORD, block >> HALF, b, seed & WORD, seed >> HALF)


@inline
def word(seed: Any, antithetic: Any, b: Any, i: Any, k: Any) -> Any:
    """Return the word of datum b, sample i and latent k alone; seed, b, i, k uint64.

    "antithetic": an odd sample takes the complement of the word before it, and Phi^-1 is odd in complements.
    """
    four = block_words(seed, b, i >> TWO, k)
    j = np.int64(i & THREE)
    return np.uint32(~four[j - 1]) if antithetic and j % 2 == 1 else four[j]


@inline
def sobol_word(seed: Any, table: Any, b: Any, i: Any, k: Any) -> Any:
    """Return the word of datum b, point i and latent k alone; seed, b, i, k uint64, `table` as of `table_of`."""
    hashed, flip, _, _ = block_words(seed, b, ALL_BLOCKS, k)
    return scrambled(point(table, i, np.int64(k)), hashed, flip)
