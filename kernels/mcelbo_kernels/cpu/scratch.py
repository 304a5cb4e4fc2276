"""Small arrays on the stack, whole vectors to and from arrays, and vectors taken from each other's lanes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from mcelbo_kernels.cpu.shape import host_shape
from mcelbo_kernels.cpu.tile import moved, pointer
from mcelbo_kernels.numerics.lanes import Vector
from mcelbo_kernels.numerics.words import Words

LANES = host_shape("float32").lanes
ALIGNMENT = 64


def stack_array(size: int) -> Any:
    """Make a function that returns an uninitialised array of so many scalars, which lives until the kernel returns."""

    @intrinsic
    def allocate(typing: Any, like: Any) -> Any:
        result = types.Array(like, 1, "C")

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = context.get_data_type(like)
            item = context.get_abi_sizeof(kind)
            data = cgutils.alloca_once(builder, ir.ArrayType(kind, size))
            data.align = ALIGNMENT
            array = context.make_array(result)(context, builder)
            populate_array(
                array,
                data=builder.bitcast(data, kind.as_pointer()),
                shape=[context.get_constant(types.intp, size)],
                strides=[context.get_constant(types.intp, item)],
                itemsize=context.get_constant(types.intp, item),
                meminfo=None,
            )
            return array._getvalue()

        return result(like), code

    return allocate


def loader(lanes: int) -> Any:
    """Make a function that returns the vector array[offset : offset + lanes]."""

    @intrinsic
    def load(typing: Any, array: Any, offset: Any) -> Any:
        scalar = array.dtype
        result = Vector(scalar, lanes) if isinstance(scalar, types.Float) else Words(scalar.bitwidth, lanes)

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = pointer(context, builder, array, *arguments)
            return builder.load(builder.bitcast(address, result.llvm.as_pointer()), align=scalar.bitwidth // 8)

        return result(array, types.intp), code

    return load


load_lanes, load_wide = loader(LANES), loader(2 * LANES)


@intrinsic
def store_lanes(typing: Any, array: Any, offset: Any, vector: Any) -> Any:
    """array[offset : offset + lanes] = vector."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = pointer(context, builder, array, *arguments[:2])
        target = builder.bitcast(address, vector.llvm.as_pointer())
        builder.store(arguments[2], target, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


def interleaver(run: int) -> Any:
    """Make a function that stores runs of so many lanes of four vectors in turn from array[offset] on."""

    def turns(builder: ir.IRBuilder, first: ir.Value, second: ir.Value, length: int) -> list[ir.Value]:
        """Take runs of two vectors in turn; return the halves."""
        starts = (side * LANES + lane for lane in range(0, LANES, length) for side in (0, 1))
        order = [start + i for start in starts for i in range(length)]
        masks = (ir.Constant(ir.VectorType(ir.IntType(32), LANES), half) for half in (order[:LANES], order[LANES:]))
        return [builder.shuffle_vector(first, second, mask) for mask in masks]

    @intrinsic
    def store(typing: Any, array: Any, offset: Any, w: Any, x: Any, y: Any, z: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = pointer(context, builder, array, *arguments[:2])
            low, high = (turns(builder, arguments[i], arguments[i + 1], run) for i in (2, 4))
            parts = [part for both in zip(low, high, strict=True) for part in turns(builder, both[0], both[1], 2 * run)]
            for i, part in enumerate(parts):
                target = builder.bitcast(moved(builder, address, i * LANES), w.llvm.as_pointer())
                builder.store(part, target, align=array.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(array, types.intp, w, w, w, w), code

    return store


store_ones_in_turn, store_twos_in_turn = interleaver(1), interleaver(2)
