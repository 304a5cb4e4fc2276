"""A kernel that has a team of threads call it: `#pragma omp parallel` around a whole function.

    void run(void (*part)(void *), void *data, unsigned threads, unsigned flags)

is the function that lends the team (see `crew.Team`). Its threads were not started by Python and never enter it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mcelbo_kernels.numerics.lanes import INT32

ANY = ir.IntType(8).as_pointer()


@intrinsic
def call_again(typing: Any, run: Any, threads: Any) -> Any:
    """Call the function that this is part of again, on every thread of a team, and return when all have returned.

    Its arguments are what they are but for the last, an integer: each thread gets a number of its own, from 0 on.
    """

    def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        address, count = arguments
        function = builder.function
        _result, _error, *same, number = function.args
        frame = cgutils.alloca_once(builder, ir.LiteralStructType([number.type, *(value.type for value in same)]))
        for i, value in enumerate([number.type(0), *same]):
            builder.store(value, cgutils.gep_inbounds(builder, frame, 0, i))
        part = take_part(function, frame.type)
        kind = ir.FunctionType(ir.VoidType(), [part.type, ANY, INT32, INT32])
        called = builder.inttoptr(address, kind.as_pointer())
        builder.call(called, [part, builder.bitcast(frame, ANY), builder.trunc(count, INT32), INT32(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


def take_part(function: ir.Function, frame: ir.Type) -> ir.Function:
    """Return part(data), which calls `function` with the arguments of the frame and the next number."""
    part = ir.Function(function.module, ir.FunctionType(ir.VoidType(), [ANY]), function.name + ".part")
    part.linkage = "internal"
    builder = ir.IRBuilder(part.append_basic_block())
    data = builder.bitcast(part.args[0], frame)
    place = cgutils.gep_inbounds(builder, data, 0, 0)
    number = builder.atomic_rmw("add", place, place.type.pointee(1), "acq_rel")
    same = [builder.load(cgutils.gep_inbounds(builder, data, 0, i)) for i in range(1, len(frame.pointee.elements))]
    own = [builder.alloca(argument.type.pointee) for argument in function.args[:2]]
    builder.call(function, [*own, *same, number])
    builder.ret_void()
    return part
