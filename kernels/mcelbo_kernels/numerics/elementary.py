"""exp, tanh and their kin for scalars and vectors: polynomials by FMA, no library call, NaN kept.

The polynomials interpolate at Chebyshev nodes, which is near-minimax; each is quoted with its own relative error,
below the rounding of the precision that it serves. The errors of the functions are measured in the tests.
"""

from __future__ import annotations

from mcelbo_kernels._compile import inline
from mcelbo_kernels.numerics.lanes import (
    absolute,
    by_last,
    by_precision,
    constant,
    fma,
    less,
    polynomial,
    power_of_two,
    quotient,
    select,
)

LOG2_E = 1.4426950408889634
# ln 2 in two parts: k times the first is exact for every exponent k
LN2 = 0.6931471805599453
LN2_HIGH_32, LN2_LOW_32 = 0.693145751953125, 1.42860682030941723212e-6
LN2_HIGH_64, LN2_LOW_64 = 0.6931471803691238, 1.9082149292705877e-10
# 1.5 * 2^p, p the mantissa's bits: adding it rounds to an integer, which then stands in the lowest bits
SHIFT_32, SHIFT_64 = 12582912.0, 6755399441055744.0
# where e^x leaves the normal numbers
LARGEST_32, SMALLEST_32 = 88.37, -87.33
LARGEST_64, SMALLEST_64 = 709.43, -708.39

# where 2^k becomes 0 and infinity, k = round(-x / ln 2)
SIGMOID_LARGEST_32, SIGMOID_SMALLEST_32 = 88.0, -88.8
SIGMOID_LARGEST_64, SIGMOID_SMALLEST_64 = 709.0, -709.9

# e^r on |r| <= ln(2)/2: relative error 1e-7 (minimax with the last two fixed), 8e-9 and 2e-19
EXP_32_SHORT = (0.00831249, 0.04189033, 0.16667115, 0.4999923, 1.0, 1.0)
EXP_32 = (0.0013926183587713494, 0.008363179052722578, 0.041666554617204574, 0.16666576989698775, 0.5, 1.0, 1.0)
EXP_64 = (
    2.0914686968086876e-09,
    2.5105217004720745e-08,
    2.75572736431103e-07,
    2.7557255400206422e-06,
    2.4801587325547743e-05,
    0.00019841269874820627,
    0.0013888888888883748,
    0.008333333333326136,
    0.04166666666666667,
    0.1666666666666667,
    0.5,
    1.0,
    1.0,
)
# atanh(s)/s in s^2 on 0 <= s <= 1/3: relative error 4e-9 and 1e-18
ATANH_32 = (0.1407888918155454, 0.13982578872598633, 0.20012297615351873, 0.33333160820688884, 1.0000000038408794)
ATANH_64 = (
    0.08522081781390699,
    0.0416225325593041,
    0.06055084364034609,
    0.06650187016337313,
    0.07693307021152004,
    0.09090870416252403,
    0.11111112040373837,
    0.14285714272727057,
    0.20000000000092874,
    0.33333333333333076,
    1.0,
)
# (tanh(x)/x - 1)/x^2 in x^2 on |x| <= 5/8: relative error 5e-9 and 4e-19
TANH_EDGE = 0.625
TANH_32 = (
    0.002292744816178142,
    -0.008343945515839153,
    0.02176891865102821,
    -0.053959259577204544,
    0.1333330355691574,
    -0.3333333317214036,
)
TANH_64 = (
    -2.438831631472088e-06,
    1.2209921790162781e-05,
    -3.708106921544234e-05,
    9.604109157026265e-05,
    -0.00023888944636751174,
    0.0005899818158388232,
    -0.0014558283998303246,
    0.003592127507599252,
    -0.008863235499801992,
    0.021869488535133222,
    -0.0539682539682359,
    0.13333333333333322,
    -0.3333333333333333,
)
# (1 + 2x) e^(x^2) erfc(x) in (x - 4)/(x + 4) on 0 <= x <= 36: relative error 1e-9 and 8e-19
ERFCX_CENTRE = 4.0
ERFCX_LARGEST = 30.0
ERFCX_32 = (
    0.0001264826501011745,
    -0.00023653294513476496,
    -0.0007354942531814549,
    0.005057924634651822,
    -0.016208874200129418,
    0.03715868139876245,
    -0.06632724464116732,
    0.09373421824514283,
    -0.10103951154828676,
    0.06809697697611106,
    0.015379676745918601,
    -0.13962111634940563,
    1.2329951184054706,
)
ERFCX_64 = (
    1.643822383545043e-10,
    1.70121137251773e-09,
    1.6610797168903795e-09,
    -1.5493960826510507e-08,
    -1.8321372885829996e-08,
    1.1202021229399306e-07,
    7.56596950424939e-08,
    -8.270407524499264e-07,
    2.928139543389313e-07,
    5.7105820406903844e-06,
    -1.1221491098034715e-05,
    -2.4399511846047305e-05,
    0.00015062149869251933,
    -0.000199256624168302,
    -0.0007577732524189954,
    0.0050319699667821715,
    -0.016197734062321743,
    0.03716751553862487,
    -0.06633036581188995,
    0.0937328349982824,
    -0.10103906603631647,
    0.06809705425469455,
    0.015379652102619918,
    -0.13962111684056253,
    1.2329951186255526,
)
SQRT_HALF = 0.7071067811865476


@inline
def exp(x):
    """e^x = 2^k e^r with k = round(x / ln 2): 0 and inf where the result leaves the normal numbers."""
    shift = by_precision(x, SHIFT_32, SHIFT_64)
    shifted = fma(x, LOG2_E, shift)
    k = shifted - constant(x, shift)
    r = fma(k, -by_precision(x, LN2_HIGH_32, LN2_HIGH_64), x)
    r = fma(k, -by_precision(x, LN2_LOW_32, LN2_LOW_64), r)
    value = polynomial(r, by_precision(x, EXP_32, EXP_64)) * power_of_two(shifted)
    value = select(less(x, by_precision(x, SMALLEST_32, SMALLEST_64)), constant(x, 0.0), value)
    overflow = less(constant(x, by_precision(x, LARGEST_32, LARGEST_64)), x)
    return select(overflow, constant(x, float("inf")), value)


@inline
def log1p_of_fraction(e):
    """ln(1 + e) for 0 <= e <= 1, as 2 atanh(e / (2 + e))."""
    s = quotient(e, e + constant(e, 2.0))
    return (s + s) * polynomial(s * s, by_precision(e, ATANH_32, ATANH_64))


@inline
def softplus_parts(x):
    """ln(1 + e^x) as max(x, 0) and ln(1 + e^-|x|), and its slope 1/(1 + e^-x): no exponential overflows."""
    e = exp(-absolute(x))
    one, off = constant(x, 1.0), less(x, 0.0)
    return select(off, constant(x, 0.0), x), log1p_of_fraction(e), quotient(select(off, e, one), one + e)


@inline
def tanh(x):
    """Return x + x^3 P(x^2) near zero, 1 - 2/(e^2x + 1) beyond."""
    square = x * x
    near = fma(x * square, polynomial(square, by_precision(x, TANH_32, TANH_64)), x)
    one = constant(x, 1.0)
    far = one - quotient(constant(x, 2.0), exp(x + x) + one)
    return select(less(absolute(x), TANH_EDGE), near, far)


@inline
def expm1(x):
    """e^x - 1 for x <= 0, as 2 t/(1 - t) with t = tanh(x/2)."""
    t = tanh(x * constant(x, 0.5))
    return quotient(t + t, constant(x, 1.0) - t)


@inline
def residue_float32(x, k):
    """Return x + k ln 2, for which one constant is near enough: k has 8 bits."""
    return fma(k, LN2, x)


@inline
def residue_float64(x, k):
    """Return x + k ln 2."""
    return fma(k, LN2_LOW_64, fma(k, LN2_HIGH_64, x))


residue = by_last(residue_float32, residue_float64)


@inline
def sigmoid(x):
    """1 / (1 + e^-x), e^-x = 2^k e^r with k = round(-x / ln 2); x is held where 2^k runs from 0 to infinity."""
    highest = constant(x, by_precision(x, SIGMOID_LARGEST_32, SIGMOID_LARGEST_64))
    lowest = constant(x, by_precision(x, SIGMOID_SMALLEST_32, SIGMOID_SMALLEST_64))
    # the bound comes first, so that NaN is kept in
    x = select(less(highest, x), highest, x)
    x = select(less(x, lowest), lowest, x)
    shift = by_precision(x, SHIFT_32, SHIFT_64)
    shifted = fma(x, -LOG2_E, shift)
    r = residue(x, shifted - constant(x, shift))
    one = constant(x, 1.0)
    return quotient(one, fma(polynomial(-r, by_precision(x, EXP_32_SHORT, EXP_64)), power_of_two(shifted), one))


@inline
def normal_density(x):
    """e^(-x^2/2) / sqrt(2 pi)."""
    return exp(x * x * constant(x, -0.5)) * constant(x, 0.3989422804014327)


@inline
def normal_cdf(x):
    """Phi(x) = erfc(-x/sqrt 2)/2, from e^(t^2) erfc(t) on the side where t >= 0."""
    t = absolute(x) * constant(x, SQRT_HALF)
    t = select(less(constant(x, ERFCX_LARGEST), t), constant(x, ERFCX_LARGEST), t)
    centre = constant(x, ERFCX_CENTRE)
    scaled = polynomial(quotient(t - centre, t + centre), by_precision(x, ERFCX_32, ERFCX_64))
    one = constant(x, 1.0)
    tail = quotient(constant(x, 0.5) * exp(-(t * t)) * scaled, fma(t, 2.0, one))
    return select(less(x, 0.0), tail, one - tail)
