"""The register tile: rows of vectors that numba holds as ONE value, so that LLVM keeps it in vector registers.

Every product of a pass is made of one operation, a scalar for each row of the tile times a run of columns:

    outer_add    tile[r, c] += left[r] * right[c]

and what happens to a tile's elements happens vector by vector, while they are still in registers:

    map_tile     tile[r, c] = function(tile[r, c], r, c, ...)
    row_sums     sums[r]    = sum_c function(tile[r, c], r, c, ...)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_model

from mcelbo_kernels.numerics.lanes import INT64, LlvmValueModel, Vector, call_intrinsic, converted, splat


class Tile(types.Type):
    """`rows` x `columns` vectors."""

    def __init__(self, vector: Vector, rows: int, columns: int) -> None:
        self.vector, self.rows, self.columns = vector, rows, columns
        super().__init__(name=f"Tile({rows} x {columns} x {vector})")

    @property
    def llvm(self) -> ir.Type:
        """The LLVM type of the data."""
        return ir.ArrayType(self.vector.llvm, self.rows * self.columns)


class Offsets(types.Type):
    """Where the scalars that a tile's rows are multiplied with lie, relative to a common start."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        super().__init__(name=f"Offsets({rows})")

    @property
    def llvm(self) -> ir.Type:
        """The LLVM type of the data."""
        return ir.ArrayType(INT64, self.rows)


register_model(Tile)(LlvmValueModel)
register_model(Offsets)(LlvmValueModel)


def tile_of(shape: Any) -> Tile:
    """Return the type of a tile of a static `Shape`."""
    return Tile(shape.vector, shape.shape.rows, shape.shape.columns)


def row_of(shape: Any) -> Tile:
    """Return the type of one row of a tile."""
    return Tile(shape.vector, 1, shape.shape.columns)


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
    tile = tile_of(shape)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(tile.llvm, None)

    return tile(shape), code


def loaded(builder: ir.IRBuilder, tile: Tile, address: ir.Value) -> ir.Value:
    """Return the tile whose vectors lie one after another from `address` on."""
    value = ir.Constant(tile.llvm, ir.Undefined)
    for i in range(tile.rows * tile.columns):
        part = load(builder, tile.vector, moved(builder, address, i * tile.vector.lanes))
        value = builder.insert_value(value, part, i)
    return value


@intrinsic
def load_row(typing: Any, shape: Any, array: Any, offset: Any) -> Any:
    """Return the row array[offset : offset + width]."""
    row = row_of(shape)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return loaded(builder, row, pointer(context, builder, array, *arguments[1:]))

    return row(shape, array, types.intp), code


@intrinsic
def load_tile(typing: Any, shape: Any, array: Any, offset: Any) -> Any:
    """Return the tile whose rows lie one after another from array[offset] on."""
    tile = tile_of(shape)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return loaded(builder, tile, pointer(context, builder, array, *arguments[1:]))

    return tile(shape, array, types.intp), code


@intrinsic
def repeat_row(typing: Any, shape: Any, row: Any) -> Any:
    """Return the tile whose every row is `row`."""
    tile = tile_of(shape)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = ir.Constant(tile.llvm, ir.Undefined)
        for i in range(tile.rows * tile.columns):
            value = builder.insert_value(value, builder.extract_value(arguments[1], i % tile.columns), i)
        return value

    return tile(shape, row), code


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
def rows_apart(typing: Any, shape: Any, distance: Any) -> Any:
    """Return the offsets of one column of a matrix: row r lies r distance further on."""
    rows = shape.shape.rows

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = ir.Constant(Offsets(rows).llvm, ir.Undefined)
        for r in range(rows):
            value = builder.insert_value(value, builder.mul(arguments[1], INT64(r)), r)
        return value

    return Offsets(rows)(shape, types.intp), code


@intrinsic
def rows_up_to(typing: Any, shape: Any, last: Any, distance: Any) -> Any:
    """Return such offsets of rows none of which lies beyond row `last`."""
    rows = shape.shape.rows

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, end, step = arguments
        value = ir.Constant(Offsets(rows).llvm, ir.Undefined)
        for r in range(rows):
            row = builder.select(builder.icmp_signed("<", INT64(r), end), INT64(r), end)
            value = builder.insert_value(value, builder.mul(row, step), r)
        return value

    return Offsets(rows)(shape, types.intp, types.intp), code


@intrinsic
def columns_apart(typing: Any, shape: Any, first: Any, last: Any, stride: Any) -> Any:
    """Return the offsets of consecutive columns, `first` and so on but none beyond `last`, of one row of a matrix.

    Its columns lie in panels of `width`, `stride` apart.
    """
    rows, width = shape.shape.rows, shape.shape.width

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, start, end, step = arguments
        value = ir.Constant(Offsets(rows).llvm, ir.Undefined)
        for r in range(rows):
            column = builder.add(start, INT64(r))
            column = builder.select(builder.icmp_signed("<", column, end), column, end)
            panel, place = builder.sdiv(column, INT64(width)), builder.srem(column, INT64(width))
            value = builder.insert_value(value, builder.add(builder.mul(panel, step), place), r)
        return value

    return Offsets(rows)(shape, types.intp, types.intp, types.intp), code


def outer_addition(steps: Callable[[Any], int], distance: Callable[[Any], int], doc: str) -> Any:
    """Make an operation that adds so many outer products: left moves by `distance` for each, right by a row."""

    @intrinsic
    def add(typing: Any, shape: Any, tile: Any, left: Any, start: Any, offsets: Any, right: Any, begin: Any) -> Any:
        row, far = row_of(shape), distance(shape.shape)

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, value, left_data, place, apart, right_data, first = arguments
            column = pointer(context, builder, left, left_data, place)
            columns = [moved(builder, column, builder.extract_value(apart, r)) for r in range(tile.rows)]
            address = pointer(context, builder, right, right_data, first)
            for k in range(steps(shape.shape)):
                vectors = loaded(builder, row, moved(builder, address, k * shape.shape.width))
                for r in range(tile.rows):
                    factor = splat(builder, builder.load(moved(builder, columns[r], k * far)), tile.vector.lanes)
                    for c in range(tile.columns):
                        i = r * tile.columns + c
                        sum_ = builder.extract_value(value, i)
                        sum_ = call_intrinsic(
                            builder, "fma", sum_.type, factor, builder.extract_value(vectors, c), sum_
                        )
                        value = builder.insert_value(value, sum_, i)
            return value

        return tile(shape, tile, left, types.intp, offsets, right, types.intp), code

    add.__doc__ = doc
    return add


outer_add = outer_addition(
    lambda shape: 1, lambda shape: 0, "tile[r, c] + left[start + offsets[r]] * right[begin + c], by FMA"
)
columns_add = outer_addition(
    lambda shape: shape.steps, lambda shape: 1, "The sum of `steps` outer products of left's columns and right's rows."
)
rows_add = outer_addition(
    lambda shape: shape.steps, lambda shape: shape.width, "The sum of `steps` outer products of rows in panels."
)


def caller(typing: Any, function: Any, tile: Tile, arguments: Any) -> tuple[Any, Callable[..., ir.Value]]:
    """Return the type of function(tile[r, c], r, c, *arguments), and what emits the call for vector r, c."""
    index = types.intp
    signature = function.get_call_type(typing, (tile.vector, index, index, *arguments.types), {})

    def call(context: Any, builder: ir.IRBuilder, value: ir.Value, packed: ir.Value, r: int, c: int) -> ir.Value:
        compiled = context.get_function(function, signature)
        vector = builder.extract_value(value, r * tile.columns + c)
        rest = [builder.extract_value(packed, i) for i in range(len(arguments.types))]
        return compiled(builder, (vector, INT64(r), INT64(c), *rest))

    return signature.return_type, call


@intrinsic
def filled_from(typing: Any, tile: Any, column: Any, value: Any) -> Any:
    """Return the tile with `value` in the columns of scalars from `column` on, whatever was there."""
    lanes = tile.vector.lanes

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        filled, first, scalar = arguments
        vector = converted(builder, scalar, value, tile.vector)
        bound = splat(builder, first, lanes)
        for i in range(tile.rows * tile.columns):
            start = i % tile.columns * lanes
            places = ir.Constant(ir.VectorType(INT64, lanes), list(range(start, start + lanes)))
            kept = builder.icmp_signed("<", places, bound)
            filled = builder.insert_value(filled, builder.select(kept, builder.extract_value(filled, i), vector), i)
        return filled

    return tile(tile, types.intp, value), code


# Vector by vector, depth first: operation by operation over the whole tile it would spill.
@intrinsic
def map_tile(typing: Any, function: Any, tile: Any, arguments: Any) -> Any:
    """Return the tile of function(tile[r, c], r, c, *arguments)."""
    result, call = caller(typing, function, tile, arguments)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        mapped = ir.Constant(tile.llvm, ir.Undefined)
        for i in range(tile.rows * tile.columns):
            part = call(context, builder, values[1], values[2], i // tile.columns, i % tile.columns)
            mapped = builder.insert_value(mapped, part, i)
        return mapped

    return Tile(result, tile.rows, tile.columns)(function, tile, arguments), code


@intrinsic
def row_sums(typing: Any, function: Any, tile: Any, arguments: Any) -> Any:
    """Return the column of vectors sum_c function(tile[r, c], r, c, *arguments)."""
    result, call = caller(typing, function, tile, arguments)
    column = Tile(result, tile.rows, 1)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        sums = ir.Constant(column.llvm, ir.Undefined)
        for r in range(tile.rows):
            total = call(context, builder, values[1], values[2], r, 0)
            for c in range(1, tile.columns):
                total = builder.fadd(total, call(context, builder, values[1], values[2], r, c))
            sums = builder.insert_value(sums, total, r)
        return sums

    return column(function, tile, arguments), code


@intrinsic
def accumulate(typing: Any, array: Any, offset: Any, tile: Any) -> Any:
    """Add the tile to the one whose rows lie one after another from array[offset] on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, start, value = arguments
        address = pointer(context, builder, array, data, start)
        for i in range(tile.rows * tile.columns):
            place = moved(builder, address, i * tile.vector.lanes)
            total = builder.fadd(load(builder, tile.vector, place), builder.extract_value(value, i))
            store(builder, tile.vector, total, place)
        return context.get_dummy_value()

    return types.void(array, types.intp, tile), code
