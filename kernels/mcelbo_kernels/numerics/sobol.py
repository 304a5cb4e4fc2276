"""Points of a Sobol sequence in 32-bit words, and their Owen scrambling by hashing.

Point i of latent k is the sum modulo 2 of the direction numbers that belong to the ones in the Gray code of i, which is
the order in which SciPy and torch count the points too:

    point(i, k) = XOR of V[k, c] over the bits c of i ^ (i >> 1)

An Owen scramble flips every digit of a point or not, at random but by the digits above it alone. A hash whose every bit
depends on lower bits alone does that to the digits in reverse. Everything here is therefore in reversed bits, until the
last step. An independent word is added to the result, which makes each point exactly uniform on its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcelbo_kernels._compile import inline
from mcelbo_kernels.numerics.words import add, bit_or, bit_xor, multiply, reverse_bits, shift_right


@inline
def scrambled(point: Any, seed: Any, flip: Any) -> Any:
    """Return the word of a point in reversed bits, scrambled by the words `seed` and `flip`; scalars or vectors.

    References
    ----------
    Laine and Karras (2011), Stratified sampling for stochastic transparency; Burley (2020), Practical hash-based Owen
    scrambling. The constants are Vegdahl's: under those of the papers strata remain correlated.
    """
    x = bit_xor(point, multiply(point, 0x3D20ADEA))
    x = add(x, seed)
    x = multiply(x, bit_or(shift_right(seed, 16), 1))
    x = bit_xor(x, multiply(x, 0x05526C56))
    x = bit_xor(x, multiply(x, 0x53A22864))
    return bit_xor(reverse_bits(x), flip)


@inline
def entry(table: Any, c: Any, k: Any) -> Any:
    """Return the direction number of bit c and latent k."""
    return table[c, k]


@inline
def point(table: Any, i: Any, k: Any) -> Any:
    """Return point i of latent k in reversed bits, a uint32; i is a uint64 below 2^(rows of the table)."""
    gray = bit_xor(i, shift_right(i, 1))
    x, c = np.uint32(0), 0
    while gray:
        if gray & np.uint64(1):
            x = bit_xor(x, entry(table, c, k))
        gray, c = shift_right(gray, 1), c + 1
    return x


def table_of(directions: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return direction numbers (d, bits) as the kernels read them: bits reversed, a row (bits, d) for each bit of i."""
    octets = np.ascontiguousarray(directions.T, "<u4").view(np.uint8)
    reversed_octets = np.packbits(np.unpackbits(octets, bitorder="little"), bitorder="big")
    return reversed_octets.view(">u4").astype(np.uint32).reshape(directions.T.shape)


def latents_first(directions: NDArray[np.uint32], bits: int = 32) -> NDArray[np.uint32]:
    """Return direction numbers (d, up to `bits`) as the table of a device: (d, bits), bits reversed, then zeros."""
    table = np.zeros((len(directions), bits), np.uint32)
    table[:, : directions.shape[1]] = table_of(directions).T
    return table


def scipy_directions(latent: int) -> NDArray[np.uint32]:
    """Return SciPy's direction numbers (latent, 32).

    Raises
    ------
    ImportError
        If there is no SciPy.
    ValueError
        If SciPy's table has fewer dimensions.

    Examples
    --------
    >>> [hex(number) for number in scipy_directions(2)[1, :3]]
    ['0x80000000', '0xc0000000', '0xa0000000']
    """
    try:
        sobol = import_module("scipy.stats.qmc").Sobol
    except ImportError as error:
        message = "sampler='sobol' needs direction numbers: install SciPy, or give them as Draw(directions=...)"
        raise ImportError(message) from error
    if latent > sobol.MAXDIM:
        raise ValueError(f"the noise has {latent} latents: sampler='sobol' has direction numbers for {sobol.MAXDIM}")
    # SciPy shows them nowhere else
    numbers: NDArray[np.uint32] = sobol(max(latent, 1), scramble=False, bits=32)._sv[:latent]
    return numbers
