"""How a thread waits for another without being in anybody's way."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mcelbo_kernels._compile import inline
from mcelbo_kernels.numerics.lanes import INT32

# Some 50 microseconds, about what sleeping and waking take. Mere yielding is no sleep: a thread that lost its core to
# a stranger gets the waiting one's only where that is seen to be idle.
PAUSES = 1000
# On ARM the hint of that purpose, yield, does nothing on most processors; a barrier takes its time.
PAUSE: dict[str, tuple[str, list[ir.Constant]]] = {
    "x86_64": ("llvm.x86.sse2.pause", []),
    "aarch64": ("llvm.aarch64.isb", [INT32(15)]),
    "arm64": ("llvm.aarch64.isb", [INT32(15)]),
}
SLEEP = "mcelbo_sleep"
# The shortest there is: a millisecond is long, so Windows is only asked to let others run.
DURATION = 0 if sys.platform == "win32" else 1


def provide_sleep() -> None:
    """Let kernels call the system's sleep by a name that is the same everywhere."""
    sleep = ctypes.CDLL("kernel32").Sleep if sys.platform == "win32" else ctypes.CDLL(None).usleep
    llvmlite.binding.add_symbol(SLEEP, ctypes.cast(sleep, ctypes.c_void_p).value)


provide_sleep()
sleep = types.ExternalFunction(SLEEP, types.void(types.uint32))


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this is a loop that waits."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        emit_pause(builder)
        return context.get_dummy_value()

    return types.void(), code


def emit_pause(builder: ir.IRBuilder) -> None:
    """Add the instruction that waits a little, or nothing where the machine has none."""
    machine = builder.module.triple.split("-")[0]
    name, arguments = PAUSE.get(machine, ("", []))
    if name:
        function = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


@inline
def rest(turns):
    """Wait a little, for the turns-th time in a row: on the core at first, then off it."""
    if turns < PAUSES:
        pause()
    else:
        sleep(DURATION)
