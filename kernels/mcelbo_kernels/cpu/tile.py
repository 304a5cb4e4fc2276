"""The register tile: rows of vectors that numba holds as ONE value, so that LLVM keeps it in vector registers.

Its operations are the two products that every pass is made of:

    outer_add    tile[r, c] += column[r] * row[c]        a scalar of each row times a run of pixels
    inner_add    tile[r, c] += left[r] * right[c]        vector times vector, whose lanes are summed at the end

A `Shape` is passed to kernels as a static argument, one without data: its fields are known when the kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import (
    NativeValue,
    intrinsic,
    models,
    overload,
    register_model,
    typeof_impl,
    unbox,
)

from mcelbo_kernels.numerics.lanes import (
    INT64,
    LlvmValueModel,
    Vector,
    call_intrinsic,
    splat,
    sum_lanes,
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A tile holds `rows` samples of `columns` vectors of `lanes` pixels each, scalars of type `real`."""

    real: str
    rows: int
    columns: int
    lanes: int

    @property
    def width(self) -> int:
        """Pixels in a row of the tile."""
        return self.columns * self.lanes


def host_shape(real: str) -> Shape:
    """Return the tile that fills this machine's vector registers and leaves room for operands."""
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        rows, columns, register = 12, 2, 64
    elif features.get("avx2"):
        rows, columns, register = 6, 2, 32
    else:
        rows, columns, register = 8, 2, 16
    return Shape(real, rows, columns, register // (4 if real == "float32" else 8))


class ShapeType(types.Type):
    """The numba type of a `Shape`; it carries the fields."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        super().__init__(name=repr(shape))

    @property
    def vector(self) -> Vector:
        """The type of one vector of a tile."""
        return Vector(getattr(types, self.shape.real), self.shape.lanes)

    @property
    def tile(self) -> Tile:
        """The type of a tile."""
        return Tile(self.vector, self.shape.rows, self.shape.columns)

    @property
    def row(self) -> Tile:
        """The type of one row of a tile."""
        return Tile(self.vector, 1, self.shape.columns)


class Tile(types.Type):
    """`rows` x `columns` vectors."""

    def __init__(self, vector: Vector, rows: int, columns: int) -> None:
        self.vector, self.rows, self.columns = vector, rows, columns
        super().__init__(name=f"Tile({rows} x {columns} x {vector})")

    @property
    def llvm(self) -> ir.Type:
        """The LLVM type of the data."""
        return ir.ArrayType(self.vector.llvm, self.rows * self.columns)


register_model(Tile)(LlvmValueModel)


def register_static(value_class: type, type_class: type) -> None:
    """Let instances of `value_class` be passed to kernels: typed `type_class(value)`, no data at all."""
    register_model(type_class)(models.OpaqueModel)

    @typeof_impl.register(value_class)
    def type_of(value: Any, context: Any) -> types.Type:
        return type_class(value)

    @unbox(type_class)
    def pass_nothing(kind: types.Type, value: Any, context: Any) -> NativeValue:
        return NativeValue(context.context.get_dummy_value())


register_static(Shape, ShapeType)


def static(field: Callable[[Any], Any]) -> Callable[..., Any]:
    """Make a function of a static argument's type that kernels see as a constant."""

    def read(argument: Any) -> Any:
        """Stand for `field` in the source of a kernel."""

    @overload(read)
    def read_from_type(argument):
        value = field(argument)
        return lambda argument: value

    return read


rows_of = static(lambda kind: kind.shape.rows)
width_of = static(lambda kind: kind.shape.width)
lanes_of = static(lambda kind: kind.shape.lanes)
columns_of = static(lambda kind: kind.shape.columns)


def pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, offset: ir.Value) -> ir.Value:
    """Return the address of element `offset` of a contiguous array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset], inbounds=True)


def moved(builder: ir.IRBuilder, address: ir.Value, elements: int | ir.Value) -> ir.Value:
    """Return the address `elements` further on."""
    step = INT64(elements) if isinstance(elements, int) else elements
    return builder.gep(address, [step], inbounds=True)


def load(builder: ir.IRBuilder, vector: Vector, address: ir.Value) -> ir.Value:
    """Load a vector from any aligned scalar on."""
    return builder.load(builder.bitcast(address, vector.llvm.as_pointer()), align=vector.real.bitwidth // 8)


def store(builder: ir.IRBuilder, vector: Vector, value: ir.Value, address: ir.Value) -> None:
    """Store a vector from any aligned scalar on."""
    builder.store(value, builder.bitcast(address, vector.llvm.as_pointer()), align=vector.real.bitwidth // 8)


@intrinsic
def zero_vector(typing: Any, shape: Any) -> Any:
    """Return a vector of zeros."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(shape.vector.llvm, None)

    return shape.vector(shape), code


@intrinsic
def load_vector(typing: Any, shape: Any, array: Any, offset: Any) -> Any:
    """Return the vector array[offset : offset + lanes]."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, data, start = arguments
        return load(builder, shape.vector, pointer(context, builder, array, data, start))

    return shape.vector(shape, array, types.intp), code


@intrinsic
def store_vector(typing: Any, array: Any, offset: Any, vector: Any) -> Any:
    """array[offset : offset + lanes] = vector."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, start, value = arguments
        store(builder, vector, value, pointer(context, builder, array, data, start))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def zero_tile(typing: Any, shape: Any) -> Any:
    """Return a tile of zeros."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(shape.tile.llvm, None)

    return shape.tile(shape), code


@intrinsic
def load_row(typing: Any, shape: Any, array: Any, offset: Any) -> Any:
    """Return the row array[offset : offset + width]."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, data, start = arguments
        address, value = pointer(context, builder, array, data, start), ir.Constant(shape.row.llvm, ir.Undefined)
        for c in range(shape.row.columns):
            part = load(builder, shape.vector, moved(builder, address, c * shape.vector.lanes))
            value = builder.insert_value(value, part, c)
        return value

    return shape.row(shape, array, types.intp), code


@intrinsic
def repeat_row(typing: Any, shape: Any, row: Any) -> Any:
    """Return the tile whose every row is `row`."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tile = shape.tile
        value = ir.Constant(tile.llvm, ir.Undefined)
        for i in range(tile.rows * tile.columns):
            value = builder.insert_value(value, builder.extract_value(arguments[1], i % tile.columns), i)
        return value

    return shape.tile(shape, row), code


@intrinsic
def store_tile(typing: Any, array: Any, offset: Any, tile: Any) -> Any:
    """Store the tile's rows one after another from array[offset] on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, start, value = arguments
        address = pointer(context, builder, array, data, start)
        for i in range(tile.rows * tile.columns):
            part = builder.extract_value(value, i)
            store(builder, tile.vector, part, moved(builder, address, i * tile.vector.lanes))
        return context.get_dummy_value()

    return types.void(array, types.intp, tile), code


@intrinsic
def outer_add(typing: Any, tile: Any, column: Any, offset: Any, row: Any) -> Any:
    """tile[r, c] + column[offset + r] * row[c], by FMA."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, data, start, right = arguments
        address = pointer(context, builder, column, data, start)
        for r in range(tile.rows):
            left = splat(builder, builder.load(moved(builder, address, r)), tile.vector.lanes)
            for c in range(tile.columns):
                i = r * tile.columns + c
                sum_ = builder.extract_value(value, i)
                sum_ = call_intrinsic(builder, "fma", sum_.type, left, builder.extract_value(right, c), sum_)
                value = builder.insert_value(value, sum_, i)
        return value

    return tile(tile, column, types.intp, row), code


@intrinsic
def inner_add(
    typing: Any, tile: Any, left: Any, left_offset: Any, left_step: Any, right: Any, right_offset: Any, right_step: Any
) -> Any:
    """tile[r, c] + left[r] * right[c] by FMA; left[r] is the vector at left_offset + r left_step, right likewise."""

    def vectors(context: Any, builder: Any, count: int, kind: Any, data: Any, offset: Any, step: Any) -> list[ir.Value]:
        address = pointer(context, builder, kind, data, offset)
        steps = [builder.mul(step, INT64(i)) for i in range(count)]
        return [load(builder, tile.vector, moved(builder, address, s)) for s in steps]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        lefts = vectors(context, builder, tile.rows, left, *arguments[1:4])
        rights = vectors(context, builder, tile.columns, right, *arguments[4:7])
        for r in range(tile.rows):
            for c in range(tile.columns):
                i = r * tile.columns + c
                sum_ = builder.extract_value(value, i)
                value = builder.insert_value(
                    value, call_intrinsic(builder, "fma", sum_.type, lefts[r], rights[c], sum_), i
                )
        return value

    index = types.intp
    return tile(tile, left, index, index, right, index, index), code


@intrinsic
def add_lane_sums(typing: Any, array: Any, offset: Any, step: Any, tile: Any) -> Any:
    """array[offset + r step + c] += the sum of the lanes of tile[r, c]."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, start, stride, value = arguments
        address = pointer(context, builder, array, data, start)
        for r in range(tile.rows):
            row = moved(builder, address, builder.mul(stride, INT64(r)))
            for c in range(tile.columns):
                total = sum_lanes(builder, builder.extract_value(value, r * tile.columns + c), tile.vector.lanes)
                place = moved(builder, row, c)
                builder.store(builder.fadd(builder.load(place), total), place)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, tile), code
