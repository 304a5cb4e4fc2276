"""Primitives that mean the same for a scalar and for a vector register of scalars.

Mathematics written with them (`activations`, `cells`) is written once and compiled for float32, float64 and vectors of
either. Constants are Python floats: each primitive rounds them to the precision of its first argument.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from mcelbo_kernels._compile import inline

INT32, INT64 = ir.IntType(32), ir.IntType(64)


class Vector(types.Type):
    """`lanes` scalars of type `real`, held in vector registers."""

    def __init__(self, real: types.Float, lanes: int) -> None:
        self.real, self.lanes = real, lanes
        super().__init__(name=f"Vector({real} x {lanes})")

    @property
    def llvm(self) -> ir.Type:
        """The LLVM type of the data."""
        return ir.VectorType(llvm_real(self.real), self.lanes)


class Mask(types.Type):
    """The outcome of comparing two vectors, a bit for each lane."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Mask({lanes})")

    @property
    def llvm(self) -> ir.Type:
        """The LLVM type of the data."""
        return ir.VectorType(ir.IntType(1), self.lanes)


@register_model(Vector)
@register_model(Mask)
class LlvmValueModel(models.PrimitiveModel):
    """A type that is one LLVM value, the same in registers and in memory."""

    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


def llvm_real(real: types.Float) -> ir.Type:
    """Return the LLVM type of a scalar."""
    return ir.FloatType() if real == types.float32 else ir.DoubleType()


def real_of(value: Any) -> types.Float:
    """Return the scalar type of a scalar or vector type."""
    return value.real if isinstance(value, Vector) else value


def is_real(value: Any) -> bool:
    """Tell whether `value` is a type that the primitives compute with."""
    return isinstance(value, Vector) or value in (types.float32, types.float64)


def splat(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """Return the vector that holds `value` in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, value, INT32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes))


def converted(builder: ir.IRBuilder, value: ir.Value, source: Any, target: Any) -> ir.Value:
    """Return `value` rounded, or widened, and repeated as the type `target` asks."""
    if source == target:
        return value
    real = llvm_real(real_of(target))
    if isinstance(source, types.Integer):
        value = builder.sitofp(value, real)
    elif isinstance(value.type, ir.DoubleType) and isinstance(real, ir.FloatType):
        value = builder.fptrunc(value, real)
    elif isinstance(value.type, ir.FloatType) and isinstance(real, ir.DoubleType):
        value = builder.fpext(value, real)
    return splat(builder, value, target.lanes) if isinstance(target, Vector) else value


def call_intrinsic(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call the LLVM intrinsic `name`, overloaded on the type of its result."""
    kind = "f32" if isinstance(getattr(result, "element", result), ir.FloatType) else "f64"
    suffix = f"v{result.count}{kind}" if isinstance(result, ir.VectorType) else kind
    signature = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.{suffix}")
    return builder.call(function, arguments)


@intrinsic
def constant(typing: Any, like: Any, value: Any) -> Any:
    """Return `value` in the type of `like`."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return converted(builder, arguments[1], value, like)

    return like(like, value), code


@intrinsic
def fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x y + z, rounded once."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        same = [converted(builder, a, t, x) for a, t in zip(arguments, (x, y, z), strict=True)]
        return call_intrinsic(builder, "fma", same[0].type, *same)

    return x(x, y, z), code


@intrinsic
def absolute(typing: Any, x: Any) -> Any:
    """Return |x|."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return call_intrinsic(builder, "fabs", arguments[0].type, arguments[0])

    return x(x), code


@intrinsic
def square_root(typing: Any, x: Any) -> Any:
    """Return the square root of x, rounded once."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return call_intrinsic(builder, "sqrt", arguments[0].type, arguments[0])

    return x(x), code


@intrinsic
def copy_sign(typing: Any, x: Any, y: Any) -> Any:
    """Return |x| with the sign of y."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return call_intrinsic(builder, "copysign", arguments[0].type, *arguments)

    return x(x, y), code


@intrinsic
def select(typing: Any, mask: Any, x: Any, y: Any) -> Any:
    """Return x where the mask holds, otherwise y: no arithmetic, so what is not selected leaves no trace."""
    result = x if is_real(x) and isinstance(x, Vector) else y if isinstance(y, Vector) else x

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        this, other = converted(builder, arguments[1], x, result), converted(builder, arguments[2], y, result)
        return builder.select(arguments[0], this, other)

    return result(mask, x, y), code


def comparison(symbol: str, doc: str) -> Any:
    """Make an ordered comparison (false for NaN) that returns a mask, or a bool for scalars."""

    @intrinsic
    def compare(typing: Any, x: Any, y: Any) -> Any:
        result = Mask(x.lanes) if isinstance(x, Vector) else types.boolean

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.fcmp_ordered(symbol, arguments[0], converted(builder, arguments[1], y, x))

        return result(x, y), code

    compare.__doc__ = doc
    return compare


less = comparison("<", "x < y, false for NaN")
equal = comparison("==", "x == y, false for NaN")


@intrinsic
def polynomial(typing: Any, x: Any, coefficients: Any) -> Any:
    """Horner's rule by FMA; `coefficients` is a tuple of Python floats, highest power first."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        terms = [
            converted(builder, builder.extract_value(arguments[1], i), types.float64, x)
            for i in range(coefficients.count)
        ]
        value = terms[0]
        for term in terms[1:]:
            value = call_intrinsic(builder, "fma", value.type, value, arguments[0], term)
        return value

    return x(x, coefficients), code


@intrinsic
def power_of_two(typing: Any, shifted: Any) -> Any:
    """Return 2^k of `shifted` = k + 1.5 * 2^p, p the mantissa's bits: k stands in the lowest and moves to the exponent.

    No conversion to an integer, whose result for NaN would be undefined: a NaN gives some number here.
    """
    real = real_of(shifted)
    mantissa, bias, bits = (23, 127, INT32) if real == types.float32 else (52, 1023, INT64)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = getattr(shifted, "lanes", 0)
        kind = ir.VectorType(bits, lanes) if lanes else bits

        def repeated(value: int) -> ir.Constant:
            return ir.Constant(kind, [value] * lanes if lanes else value)

        exponent = builder.shl(builder.bitcast(arguments[0], kind), repeated(mantissa))
        return builder.bitcast(builder.add(exponent, repeated(bias << mantissa)), arguments[0].type)

    return shifted(shifted), code


@intrinsic
def by_precision(typing: Any, like: Any, single: Any, double: Any) -> Any:
    """Return `single` for float32 and `double` for float64, decided when compiled."""
    index = 1 if real_of(like) == types.float32 else 2

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[index]

    return (single, double)[index - 1](like, single, double), code


def by_last(single: Callable[..., Any], double: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that is `single` or `double` by the precision of its last argument, decided when compiled."""

    def choice(*arguments):
        """Stand for either."""

    @overload(choice, jit_options={"forceinline": True})
    def chosen(*arguments):
        if real_of(arguments[-1]) == types.float32:
            return lambda *arguments: single(*arguments)
        return lambda *arguments: double(*arguments)

    CHOICES[choice] = single, double
    return choice


# what `by_last` made, and of what
CHOICES: dict[Callable[..., Any], tuple[Callable[..., Any], Callable[..., Any]]] = {}


@inline
def quotient(x, y):
    """Return x / y, to a rounding or two."""
    return x / y


def sum_lanes(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """Return the sum of a vector's lanes, by halves."""
    while lanes > 1:
        lanes //= 2
        low, high = (
            builder.shuffle_vector(
                value, value, ir.Constant(ir.VectorType(INT32, lanes), list(range(start, start + lanes)))
            )
            for start in (0, lanes)
        )
        value = builder.fadd(low, high)
    return builder.extract_element(value, INT32(0))


@intrinsic
def sum_of_lanes(typing: Any, vector: Any) -> Any:
    """Return the sum of a vector's lanes, by halves."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return sum_lanes(builder, arguments[0], vector.lanes)

    return vector.real(vector), code


def give_vectors(operation: Callable[..., Any], instruction: str) -> None:
    """Give vectors the Python operator `operation`; the other side may be a scalar, which is repeated."""

    @intrinsic
    def apply(typing: Any, x: Any, y: Any) -> Any:
        result = x if isinstance(x, Vector) else y

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left, right = (converted(builder, a, t, result) for a, t in zip(arguments, (x, y), strict=True))
            return getattr(builder, instruction)(left, right)

        return result(x, y), code

    @overload(operation)
    def operator_of_vectors(x, y):
        if (isinstance(x, Vector) or isinstance(y, Vector)) and not isinstance(x, types.Array):
            return lambda x, y: apply(x, y)
        return None


@intrinsic
def negative(typing: Any, x: Any) -> Any:
    """Return -x."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fneg(arguments[0])

    return x(x), code


@overload(operator.neg)
def negative_vector(x):
    """Give vectors Python's unary minus."""
    return (lambda x: negative(x)) if isinstance(x, Vector) else None


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    give_vectors(_operation, _instruction)
