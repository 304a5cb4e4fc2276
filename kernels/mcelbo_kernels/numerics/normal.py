"""The inverse normal CDF of a random word: Phi^-1((word + 1/2) / 2^32), branch-free, odd and monotone.

With p the distance of u to the nearer end and x = |2u - 1|, 1 - x^2 = 4p(1 - p). u is never formed where that would
lose it: x comes from the word's distance to the centre, p from that to the end. float32 is one formula for all words,

    eps = sqrt(2L - L R(L)),   L = -log(1 - x^2) = -e log 2 - log(1 - f),   1 - x^2 = 2^e (1 - f)

where f is x^2 itself for e = 0, so that L keeps its relative accuracy at the centre. R falls slowly from 0.43 to 0.13,
so that what rounds is hardly more than L and its root, either of which is monotone. The polynomials are minimax for the
relative error of eps, their coefficients rounded to float32 one by one and the rest fitted again.

float64 is algorithm AS241 of Wichura (1988), The percentage points of the normal distribution, Applied Statistics 37,
whose third interval starts beyond the last word.

Each is in two steps, a logarithm and the rest. A loop over many words is faster as two loops, since the whole chain of
operations is longer than what a processor looks ahead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mcelbo_kernels._compile import inline
from mcelbo_kernels.numerics.lanes import by_last, copy_sign, equal, fma, less, polynomial, select, square_root
from mcelbo_kernels.numerics.words import (
    add,
    bit_and,
    bit_or,
    bit_xor,
    bits_of,
    from_bits,
    shift_right,
    spread,
    subtract,
    to_float32,
    to_float64,
    to_word,
)

# All highest power first. (-log(1 - f) - f)/f^2 on 0 <= f <= 1/2: error 2^-26.3 of eps
LOG_32 = (
    1.4175539016723633,
    -1.6452733278274536,
    1.2130632400512695,
    -0.1826765388250351,
    0.2640667259693146,
    0.24363873898983002,
    0.33363455533981323,
    0.4999951720237732,
)
# R: error 2^-27.7 of eps
R_NUMERATOR = (
    2.7258190371526325e-08,
    2.7182730264030397e-05,
    0.0007091441657394171,
    0.010304518975317478,
    0.04856153577566147,
    0.42920365929603577,
)
R_DENOMINATOR = (
    5.607987077382859e-06,
    0.0002673928393051028,
    0.004114758688956499,
    0.0393034853041172,
    0.19950920343399048,
    1.0,
)
# (atanh(s)/s - 1)/s^2 in s^2 on |s| <= 3 - 2 sqrt 2: error 2^-57 of the logarithm
ATANH_64 = (
    0.07308292712444311,
    0.07665855309105386,
    0.09091444727837474,
    0.11111105565129939,
    0.14285714313001635,
    0.19999999999949722,
    0.3333333333333335,
)
CENTRE_NUMERATOR = (
    2509.0809287301226727,
    33430.575583588128105,
    67265.770927008700853,
    45921.953931549871457,
    13731.693765509461125,
    1971.5909503065514427,
    133.14166789178437745,
    3.387132872796366608,
)
CENTRE_DENOMINATOR = (
    5226.495278852854561,
    28729.085735721942674,
    39307.89580009271061,
    21213.794301586595867,
    5394.1960214247511077,
    687.1870074920579083,
    42.313330701600911252,
    1.0,
)
TAIL_NUMERATOR = (
    7.7454501427834140764e-4,
    0.0227238449892691845833,
    0.24178072517745061177,
    1.27045825245236838258,
    3.64784832476320460504,
    5.7694972214606914055,
    4.6303378461565452959,
    1.42343711074968357734,
)
TAIL_DENOMINATOR = (
    1.05075007164441684324e-9,
    5.475938084995344946e-4,
    0.0151986665636164571966,
    0.14810397642748007459,
    0.68976733498510000455,
    1.6763848301838038494,
    2.05319162663775882187,
    1.0,
)

LN2 = 0.6931471805599453
ALL, SIGN, ALL_BUT_SIGN, SIGN_SHIFT = 2**32 - 1, 2**31, 2**31 - 1, 31
EXPONENT_32, EXPONENT_64, MANTISSA_64 = 0xFF800000, 0xFFF0000000000000, 52
# e changes where 1 - x^2 crosses this times a power of two
HALF_BITS_32, SQRT_HALF_BITS_64 = np.float32(0.5).view(np.uint32) + 8, np.float64(0.5**0.5).view(np.uint64)
# 2^52 + 64 whose lowest bits take e + 64
SHIFT_64 = 2.0**52 + 64
SHIFT_BITS_64 = np.float64(2.0**52).view(np.uint64)


@inline
def words_from_end(word: Any) -> Any:
    """Return min(word, ~word)."""
    return bit_xor(word, spread(word, SIGN_SHIFT))


@inline
def logarithm_float32(word: Any) -> Any:
    """Return L = -log(4p(1 - p)) in float32."""
    from_end = words_from_end(word)
    p4 = fma(to_float32(from_end), 2.0**-30, 2.0**-31)
    # (2 words from the centre + 1) / 2^32, exact where it is small; elsewhere so many words are lost
    from_centre = bit_xor(from_end, ALL_BUT_SIGN)
    rounded = to_float32(from_centre)
    lost = to_float32(subtract(from_centre, to_word(rounded)))
    x = fma(rounded, 2.0**-31, 2.0**-32)
    bits = bits_of(fma(p4 * p4, -0.25, p4))
    exponent = bit_and(subtract(bits, HALF_BITS_32), EXPONENT_32)
    e = to_float32(exponent)  # times 2^23
    square = x * x
    central = equal(e, 0.0)
    f = select(central, square, 1.0 - from_bits(subtract(bits, exponent)))
    # what x and then x^2 lost in rounding
    rest = select(central, fma(lost, x * 2.0**-30, fma(x, x, -square)), 0.0)
    return fma(e, -(2.0**-23) * LN2, f + fma(f * f, polynomial(f, LOG_32), rest))


@inline
def quantile_float32(word: Any, L: Any) -> Any:
    """Return Phi^-1 given the logarithm."""
    R = polynomial(L, R_NUMERATOR) / polynomial(L, R_DENOMINATOR)
    size = square_root(fma(-L, R, L + L))
    return from_bits(bit_or(bits_of(size), bit_and(bit_xor(word, ALL), SIGN)))


@inline
def normal_float32(word: Any) -> Any:
    """Return Phi^-1((word + 1/2) / 2^32) in float32 for a uint32 or a vector of them, to 2 ulp."""
    return quantile_float32(word, logarithm_float32(word))


@inline
def logarithm_float64(word: Any) -> Any:
    """Return log(p) in float64, as e log 2 + 2 atanh(f / (2 + f)) with p = 2^e (1 + f)."""
    bits = bits_of(fma(to_float64(words_from_end(word)), 2.0**-32, 2.0**-33))
    shifted = subtract(bits, SQRT_HALF_BITS_64)
    f = from_bits(subtract(bits, bit_and(shifted, EXPONENT_64))) - 1.0
    # no vector converts integers of 64 bits
    biased = shift_right(add(shifted, 64 << MANTISSA_64), MANTISSA_64)
    e = from_bits(bit_or(biased, SHIFT_BITS_64)) - SHIFT_64
    s = f / (2.0 + f)
    square = s * s
    return fma(e, LN2, fma(2.0 * s * square, polynomial(square, ATANH_64), 2.0 * s))


@inline
def quantile_float64(word: Any, logarithm: Any) -> Any:
    """Return Phi^-1 given the logarithm."""
    # q = 1/2 - p is exact
    q = fma(to_float64(words_from_end(word)), -(2.0**-32), 0.5 - 2.0**-33)
    r = fma(-q, q, 0.180625)
    centre = q * polynomial(r, CENTRE_NUMERATOR) / polynomial(r, CENTRE_DENOMINATOR)
    s = square_root(-logarithm) - 1.6
    tail = polynomial(s, TAIL_NUMERATOR) / polynomial(s, TAIL_DENOMINATOR)
    # negative below the centre
    return copy_sign(select(less(q, 0.425), centre, tail), to_float64(bit_xor(word, ALL)))


@inline
def normal_float64(word: Any) -> Any:
    """Return Phi^-1((word + 1/2) / 2^32) in float64 for a uint32 or a vector of them, within 1e-14 relative."""
    return quantile_float64(word, logarithm_float64(word))


@inline
def logarithm_by_float32(word: Any, like: Any) -> Any:
    """Return the logarithm in the precision of the scalar `like`."""
    return logarithm_float32(word)


@inline
def logarithm_by_float64(word: Any, like: Any) -> Any:
    """Return the logarithm in the precision of the scalar `like`."""
    return logarithm_float64(word)


logarithm = by_last(logarithm_by_float32, logarithm_by_float64)
quantile = by_last(quantile_float32, quantile_float64)
