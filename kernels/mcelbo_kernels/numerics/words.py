"""Unsigned integer arithmetic, modulo 2^32 or 2^64, that means the same for a scalar and for a vector register of them.

numba's own operators widen what they are given; these never do. A Python integer or an integer scalar beside a word is
cut to its width, and repeated where the word is a vector.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_model

from mcelbo_kernels.numerics.lanes import LlvmValueModel, Vector, llvm_real, splat


class Words(types.Type):
    """`lanes` unsigned integers of so many bits, held in vector registers."""

    def __init__(self, bits: int, lanes: int) -> None:
        self.bits, self.lanes = bits, lanes
        super().__init__(name=f"Words({bits} x {lanes})")

    @property
    def llvm(self) -> ir.Type:
        """The LLVM type of the data."""
        return ir.VectorType(ir.IntType(self.bits), self.lanes)


register_model(Words)(LlvmValueModel)


def of_width(bits: int, lanes: int) -> Any:
    """Return the type of words of so many bits: a vector's, or a scalar's for no lanes."""
    return Words(bits, lanes) if lanes else {32: types.uint32, 64: types.uint64}[bits]


def width_and_lanes(kind: Any) -> tuple[int, int]:
    """Return the bits of a word or a real, and the lanes of its type: 0 for a scalar."""
    if isinstance(kind, Words):
        return kind.bits, kind.lanes
    return (kind.real.bitwidth, kind.lanes) if isinstance(kind, Vector) else (kind.bitwidth, 0)


def converted(builder: ir.IRBuilder, value: ir.Value, source: Any, target: Any) -> ir.Value:
    """Return the integer `value` cut to the width of `target`, or widened, and repeated as it asks."""
    if source == target:
        return value
    bits, lanes = width_and_lanes(target)
    if value.type.width > bits:
        value = builder.trunc(value, ir.IntType(bits))
    elif value.type.width < bits:
        value = (builder.sext if source.signed else builder.zext)(value, ir.IntType(bits))
    return splat(builder, value, lanes) if lanes else value


def operation(instruction: str, doc: str) -> Any:
    """Make an operation on two words, or a word and an integer."""

    @intrinsic
    def apply(typing: Any, x: Any, y: Any) -> Any:
        result = y if isinstance(y, Words) else x

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left, right = (converted(builder, a, t, result) for a, t in zip(arguments, (x, y), strict=True))
            return getattr(builder, instruction)(left, right)

        return result(x, y), code

    apply.__doc__ = doc
    return apply


bit_and = operation("and_", "x & y")
bit_or = operation("or_", "x | y")
bit_xor = operation("xor", "x ^ y")
add = operation("add", "x + y")
subtract = operation("sub", "x - y")
multiply = operation("mul", "x y")
shift_left = operation("shl", "x << y")
shift_right = operation("lshr", "x >> y")
spread = operation("ashr", "x >> y, with copies of the highest bit coming in")


@intrinsic
def words_like(typing: Any, like: Any, value: Any) -> Any:
    """Return the integer `value` as a word of the type of `like`."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return converted(builder, arguments[1], value, like)

    return like(like, value), code


@intrinsic
def reverse_bits(typing: Any, word: Any) -> Any:
    """Return the bits of a word of 32 bits in reverse."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        name = f"llvm.bitreverse.v{word.lanes}i32" if isinstance(word, Words) else "llvm.bitreverse.i32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
        return builder.call(function, arguments)

    return word(word), code


@intrinsic
def trailing_zeros(typing: Any, word: Any) -> Any:
    """Return the number of the lowest bit of a scalar that is one."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return word(word), code


def conversion(real: types.Float) -> Any:
    """Make the conversion of words, taken as signed, to a precision."""

    @intrinsic
    def convert(typing: Any, word: Any) -> Any:
        result = Vector(real, word.lanes) if isinstance(word, Words) else real

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = result.llvm if isinstance(result, Vector) else llvm_real(real)
            return builder.sitofp(arguments[0], kind)

        return result(word), code

    return convert


to_float32, to_float64 = conversion(types.float32), conversion(types.float64)


@intrinsic
def to_word(typing: Any, real: Any) -> Any:
    """Return a real as a signed integer of 32 bits, cut off; where it does not fit, some number."""
    result = of_width(32, width_and_lanes(real)[1])

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fptosi(arguments[0], context.get_value_type(result))

    return result(real), code


@intrinsic
def bits_of(typing: Any, real: Any) -> Any:
    """Return the bits of a real."""
    bits, lanes = width_and_lanes(real)
    result = of_width(bits, lanes)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(result))

    return result(real), code


@intrinsic
def from_bits(typing: Any, word: Any) -> Any:
    """Return the real that has these bits."""
    bits, lanes = width_and_lanes(word)
    real = {32: types.float32, 64: types.float64}[bits]
    result = Vector(real, lanes) if lanes else real

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(result))

    return result(word), code


@intrinsic
def widened(typing: Any, words: Any) -> Any:
    """Return a vector's words of 32 bits as words of 64."""
    result = Words(64, words.lanes)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(arguments[0], result.llvm)

    return result(words), code


@intrinsic
def narrowed(typing: Any, words: Any) -> Any:
    """Return the lower halves of a vector's words of 64 bits."""
    result = Words(32, words.lanes)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.trunc(arguments[0], result.llvm)

    return result(words), code


@intrinsic
def at_least(typing: Any, words: Any, bound: Any) -> Any:
    """Return words of ones in the lanes that are no less than `bound`, both taken as signed, and zeros in others."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        limit = converted(builder, arguments[1], bound, words)
        return builder.sext(builder.icmp_signed(">=", arguments[0], limit), words.llvm)

    return words(words, bound), code
