"""Square blocks of a matrix, a vector of lanes in each row, transposed in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mcelbo_kernels.cpu.tile import Tile, load, pointer, store
from mcelbo_kernels.numerics.lanes import INT32, Vector, converted, splat


def address_of_row(builder: ir.IRBuilder, first: ir.Value, stride: ir.Value, row: int) -> ir.Value:
    """Return the address of a row of a block whose rows are `stride` apart."""
    return builder.gep(first, [builder.mul(stride, stride.type(row))], inbounds=True)


@intrinsic
def load_block(typing: Any, shape: Any, array: Any, offset: Any, stride: Any) -> Any:
    """Return the square tile of the array's type whose rows begin at array[offset] and lie `stride` apart."""
    lanes = shape.shape.lanes
    block = Tile(Vector(array.dtype, lanes), lanes, 1)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, data, start, apart = arguments
        first, value = pointer(context, builder, array, data, start), ir.Constant(block.llvm, ir.Undefined)
        for r in range(lanes):
            row = load(builder, block.vector, address_of_row(builder, first, apart, r))
            value = builder.insert_value(value, row, r)
        return value

    return block(shape, array, types.intp, types.intp), code


@intrinsic
def store_block(typing: Any, array: Any, offset: Any, stride: Any, block: Any) -> Any:
    """Store the tile's rows `stride` apart, from array[offset] on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, start, apart, value = arguments
        first = pointer(context, builder, array, data, start)
        for r in range(block.rows):
            row = builder.extract_value(value, r)
            store(builder, block.vector, row, address_of_row(builder, first, apart, r))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, block), code


@intrinsic
def rounded(typing: Any, shape: Any, block: Any, factor: Any) -> Any:
    """Return factor block[r, c] in the precision of the shape."""
    result = Tile(shape.vector, block.rows, 1)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, value, scalar = arguments
        factors = splat(builder, converted(builder, scalar, factor, block.vector.real), block.vector.lanes)
        rows = ir.Constant(result.llvm, ir.Undefined)
        for r in range(block.rows):
            product = builder.fmul(builder.extract_value(value, r), factors)
            if shape.vector != block.vector:
                product = builder.fptrunc(product, shape.vector.llvm)
            rows = builder.insert_value(rows, product, r)
        return rows

    return result(shape, block, factor), code


# Pairs of rows exchange every second element, then every second pair of elements, and so on.
@intrinsic
def transposed(typing: Any, block: Any) -> Any:
    """Return the transpose of a square tile."""
    size = block.rows

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows = [builder.extract_value(arguments[0], r) for r in range(size)]
        kind, run = ir.VectorType(INT32, size), 1
        while run < size:
            upper = ir.Constant(kind, [i if not i & run else size + i - run for i in range(size)])
            lower = ir.Constant(kind, [i + run if not i & run else size + i for i in range(size)])
            for r in range(size):
                if not r & run:
                    one, other = rows[r], rows[r + run]
                    rows[r] = builder.shuffle_vector(one, other, upper)
                    rows[r + run] = builder.shuffle_vector(one, other, lower)
            run *= 2
        value = ir.Constant(block.llvm, ir.Undefined)
        for r, row in enumerate(rows):
            value = builder.insert_value(value, row, r)
        return value

    return block(block), code
