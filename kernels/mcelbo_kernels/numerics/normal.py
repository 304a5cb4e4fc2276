"""The inverse normal CDF of a random word: Phi^-1((word + 1/2) / 2^32), branch-free, odd and monotone.

Both precisions compute a centre and a tail and select. u is never formed where that would lose it: with p the distance
to the nearer end and x = |2u - 1|, 1 - x^2 = 4p(1 - p) and

    float32 centre    eps = c x + x w P(w),    w = x^2, c = sqrt(pi/2)
    float32 tail      eps = sqrt(L - L R(L)),  L = -2 log(1 - x^2)

R falls slowly from 0.20 to 0.07, so that what rounds in the tail is hardly more than L and its root. The polynomials
are minimax for the relative error of eps, their coefficients rounded to float32 one by one and the rest fitted again.

float64 is algorithm AS241 of Wichura (1988), The percentage points of the normal distribution, Applied Statistics 37,
whose third interval starts beyond the last word.

Each is in two steps, a logarithm and the rest. A loop over many words is faster as two loops, since the whole chain of
operations is longer than what a processor looks ahead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from mcelbo_kernels._compile import inline
from mcelbo_kernels.numerics.lanes import fma, polynomial

# All highest power first. P: error 2^-27.3
CENTRE_32 = (
    0.5154034495353699,
    -0.5700017213821411,
    0.428838312625885,
    -0.044955912977457047,
    0.11319320648908615,
    0.12031423300504684,
    0.18048951029777527,
    0.328115314245224,
)
# (2f - 2 log(1 + f))/f^2 where 2^e (1 + f) is in the tail: error 2^-25.6
LOG_32 = (
    0.20290225744247437,
    -0.32697775959968567,
    0.3457997143268585,
    -0.39769619703292847,
    0.4992987811565399,
    -0.6667088866233826,
    1.0000096559524536,
)
# R: error 2^-26.6
R_NUMERATOR = (
    -6.48839426631298e-10,
    2.2271024135989137e-07,
    7.046476093819365e-05,
    0.0014034349005669355,
    0.01846218667924404,
    0.21459996700286865,
)
R_DENOMINATOR = (
    1.9855235223076306e-05,
    0.0006956278230063617,
    0.011647536419332027,
    0.12919604778289795,
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
SQRT_HALF_PI = 1.2533141374588013  # a float32
MANTISSA_32, SIGN_SHIFT, MANTISSA_64 = np.int32(23), np.int32(31), np.int64(52)
SQRT_HALF_BITS_32, SQRT_HALF_BITS_64 = np.float32(0.5**0.5).view(np.int32), np.float64(0.5**0.5).view(np.int64)
SIGN, ALL_BUT_SIGN = np.int32(-(2**31)), np.int32(2**31 - 1)
# words nearer to an end than this, p < 0.155, are the tail; here centre and tail round alike, so that eps is monotone
TAIL_32 = np.int32(665719551)


@inline
def upper_half(word: Any) -> Any:
    """Return int32 -1 for u > 1/2, otherwise 0."""
    return np.int32(np.int32(word) >> SIGN_SHIFT)


@inline
def words_from_end(word: Any) -> Any:
    """Return min(word, ~word), an int32."""
    return np.int32(np.int32(word) ^ upper_half(word))


@inline
def logarithm_float32(word: Any) -> Any:
    """Return L = -2 log(4p(1 - p)) in float32, right where the tail needs it."""
    p4 = fma(np.float32(words_from_end(word)), 2.0**-30, 2.0**-31)
    # 1 - x^2 = 2^e (1 + f)
    bits = np.float32(fma(p4 * p4, -0.25, p4)).view(np.int32)
    e = np.int32(np.int32(bits - SQRT_HALF_BITS_32) >> MANTISSA_32)
    f = np.int32(bits - np.int32(e << MANTISSA_32)).view(np.float32) - np.float32(1.0)
    return fma(np.float32(e), -2.0 * LN2, fma(f * f, polynomial(f, LOG_32), -(f + f)))


@inline
def quantile_float32(word: Any, L: Any) -> Any:
    """Return Phi^-1 given the logarithm."""
    from_end = words_from_end(word)
    # |x| = (2 words from the centre + 1) / 2^32, exact where it is small
    x = fma(np.float32(np.int32(from_end ^ ALL_BUT_SIGN)), 2.0**-31, 2.0**-32)
    w = x * x
    centre = fma(x, SQRT_HALF_PI, x * w * polynomial(w, CENTRE_32))
    R = polynomial(L, R_NUMERATOR) / polynomial(L, R_DENOMINATOR)
    tail = np.float32(np.sqrt(fma(-L, R, L)))
    size = np.float32(tail if from_end < TAIL_32 else centre)
    return np.int32(size.view(np.int32) | np.int32(np.int32(~np.int32(word)) & SIGN)).view(np.float32)


@inline
def normal_float32(word: Any) -> Any:
    """Return Phi^-1((word + 1/2) / 2^32) in float32 for a uint32, within 2 ulp."""
    return quantile_float32(word, logarithm_float32(word))


@inline
def logarithm_float64(word: Any) -> Any:
    """Return log(p) in float64, as e log 2 + 2 atanh(f / (2 + f)) with p = 2^e (1 + f)."""
    bits = np.float64(fma(np.float64(words_from_end(word)), 2.0**-32, 2.0**-33)).view(np.int64)
    e = (bits - SQRT_HALF_BITS_64) >> MANTISSA_64
    f = np.int64(bits - (e << MANTISSA_64)).view(np.float64) - 1.0
    s = f / (2.0 + f)
    square = s * s
    return fma(np.float64(np.int32(e)), LN2, fma(2.0 * s * square, polynomial(square, ATANH_64), 2.0 * s))


@inline
def quantile_float64(word: Any, logarithm: Any) -> Any:
    """Return Phi^-1 given the logarithm."""
    # q = 1/2 - p is exact
    q = fma(np.float64(words_from_end(word)), -(2.0**-32), 0.5 - 2.0**-33)
    r = fma(-q, q, 0.180625)
    centre = q * polynomial(r, CENTRE_NUMERATOR) / polynomial(r, CENTRE_DENOMINATOR)
    s = np.sqrt(-logarithm) - 1.6
    tail = polynomial(s, TAIL_NUMERATOR) / polynomial(s, TAIL_DENOMINATOR)
    size = centre if q <= 0.425 else tail
    return size if upper_half(word) else -size


@inline
def normal_float64(word: Any) -> Any:
    """Return Phi^-1((word + 1/2) / 2^32) in float64 for a uint32, within 1e-14 relative."""
    return quantile_float64(word, logarithm_float64(word))


def logarithm(word: Any, like: Any) -> Any:
    """Return the logarithm in the precision of the scalar `like`, decided when compiled."""
    raise NotImplementedError("for use in compiled code")


def quantile(word: Any, logarithm: Any) -> Any:
    """Return Phi^-1 in the precision of the logarithm, decided when compiled."""
    raise NotImplementedError("for use in compiled code")


@overload(logarithm, jit_options={"forceinline": True})
def _logarithm(word, like):
    if like == types.float32:
        return lambda word, like: logarithm_float32(word)
    return lambda word, like: logarithm_float64(word)


@overload(quantile, jit_options={"forceinline": True})
def _quantile(word, logarithm):
    if logarithm == types.float32:
        return lambda word, logarithm: quantile_float32(word, logarithm)
    return lambda word, logarithm: quantile_float64(word, logarithm)
