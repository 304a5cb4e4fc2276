"""The scalar mathematics of `mcelbo_kernels.numerics` as device functions: the same Python functions, compiled again.

Those functions are written with primitives (`fma`, `select`, `add` of words, ...) that stand for LLVM instructions on
the CPU. Here each primitive has a twin in plain Python, and a function is bound to the twins: a copy of it, whose
global names mean the twins and whose callees are copies too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import cache
from types import FunctionType
from typing import Any

from numba.core.dispatcher import Dispatcher

from mcelbo_kernels.cuda.seam import SIMULATED, cuda, device, float32, float64, int32, int64, libdevice, uint32, uint64
from mcelbo_kernels.numerics import lanes, normal, philox, sobol, words

BITS = 32  # of direction numbers, which lie one latent after the other, lowest bit of the Gray code first
# What computes with words of 64 bits; whatever else takes words takes those of 32.
WIDE = (philox.turn, philox.rounds, philox.philox, normal.logarithm_float64, sobol.point)


def reals(real: Any) -> dict[Any, Callable[..., Any]]:
    """Return the twins of the primitives that compute with reals, for one precision."""
    single = real == float32

    def constant(like, value):
        return real(value)

    def fma(x, y, z):
        return cuda.fma(real(x), real(y), real(z))

    def absolute(x):
        return abs(x)

    def square_root(x):
        return math.sqrt(x)

    def copy_sign(x, y):
        return math.copysign(x, y)

    def select(mask, x, y):
        return real(x) if mask else real(y)

    def less(x, y):
        return x < real(y)

    def equal(x, y):
        return x == real(y)

    def quotient(x, y):
        return libdevice.fast_fdividef(x, y) if single else x / y

    def polynomial(x, coefficients):
        value = real(coefficients[0])
        for c in coefficients[1:]:
            value = cuda.fma(value, x, real(c))
        return value

    def power_of_two_32(shifted):
        return libdevice.int_as_float(int32((libdevice.float_as_int(shifted) << 23) + (127 << 23)))

    def power_of_two_64(shifted):
        return libdevice.longlong_as_double((libdevice.double_as_longlong(shifted) << 52) + (1023 << 52))

    def by_precision(like, of_single, of_double):
        return of_single if single else of_double

    named = (constant, fma, absolute, square_root, copy_sign, select, less, equal, quotient, polynomial, by_precision)
    twins = {getattr(lanes, twin.__name__): twin for twin in named}
    return twins | {lanes.power_of_two: power_of_two_32 if single else power_of_two_64}


def integers(word: Any) -> dict[Any, Callable[..., Any]]:
    """Return the twins of the primitives that compute with words, for one width."""
    narrow = word == uint32

    def bit_and(x, y):
        return word(word(x) & word(y))

    def bit_or(x, y):
        return word(word(x) | word(y))

    def bit_xor(x, y):
        return word(word(x) ^ word(y))

    def add(x, y):
        return word(word(x) + word(y))

    def subtract(x, y):
        return word(word(x) - word(y))

    def multiply(x, y):
        return word(word(x) * word(y))

    def shift_left(x, y):
        return word(word(x) << word(y))

    def shift_right(x, y):
        return word(word(x) >> word(y))

    def spread(x, y):
        return word(int32(x) >> int32(y))

    def reverse_bits(x):
        return cuda.brev(x)

    def to_float32(x):
        return float32(int32(x))

    def to_float64(x):
        return float64(int32(x))

    def to_word(x):
        return uint32(int32(x))

    def bits_of_32(x):
        return uint32(libdevice.float_as_int(x))

    def bits_of_64(x):
        return uint64(libdevice.double_as_longlong(x))

    def from_bits_32(x):
        return libdevice.int_as_float(int32(x))

    def from_bits_64(x):
        return libdevice.longlong_as_double(int64(x))

    def entry(table, c, k):
        return table[k * BITS + c]

    of_two = (bit_and, bit_or, bit_xor, add, subtract, multiply, shift_left, shift_right, spread)
    of_one = (reverse_bits, to_float32, to_float64, to_word)
    twins = {getattr(words, twin.__name__): twin for twin in (*of_two, *of_one)}
    bits_of, from_bits = (bits_of_32, from_bits_32) if narrow else (bits_of_64, from_bits_64)
    return twins | {words.bits_of: bits_of, words.from_bits: from_bits, sobol.entry: entry}


class Binding:
    """The shared functions bound to the twins of one precision, each made a device function once."""

    def __init__(self, real: Any) -> None:
        self._single = real == float32
        self._twins = {
            word: {primitive: device(twin) for primitive, twin in (reals(real) | integers(word)).items()}
            for word in (uint32, uint64)
        }
        self._bound: dict[Any, Any] = {}

    def __call__(self, function: Any) -> Any:
        """Return a function of `mcelbo_kernels.numerics` as a device function."""
        if function not in self._bound:
            twins, source = self._twins[uint64 if function in WIDE else uint32], function.py_func
            used = (name for name in source.__code__.co_names if name in source.__globals__)
            names = {name: self._meaning(source.__globals__[name], twins) for name in used}
            self._bound[function] = device(FunctionType(source.__code__, names, source.__name__))
        return self._bound[function]

    def _meaning(self, value: Any, twins: Any) -> Any:
        """Return what a global name that means `value` on the CPU means here."""
        if isinstance(value, FunctionType) and value in lanes.CHOICES:
            value = lanes.CHOICES[value][0 if self._single else 1]
        if isinstance(value, Hashable) and value in twins:
            return twins[value]
        return self(value) if isinstance(value, Dispatcher) else value


@cache
def binding(real: Any) -> Callable[[Any], Any]:
    """Return what binds the shared functions to the twins of a precision."""
    # the simulator runs Python, which calls what is compiled for the CPU
    return (lambda function: function) if SIMULATED else Binding(real)
