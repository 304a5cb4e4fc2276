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

# Some 50 microseconds, about what sleeping and waking take. Mere yielding is no sleep: a thread that lost its core to
# a stranger gets the waiting one's only where that is seen to be idle.
PAUSES = 1000
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
    """Tell the processor that this is a loop that waits; nothing where there is no word for it."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        machine, nothing = builder.module.triple.split("-")[0], ir.FunctionType(ir.VoidType(), [])
        if machine in ("x86_64", "amd64", "i386", "i686"):
            builder.call(cgutils.get_or_insert_function(builder.module, nothing, "llvm.x86.sse2.pause"), [])
        elif machine in ("aarch64", "arm64"):
            # its own hint, yield, does nothing on most processors
            builder.asm(nothing, "isb", "~{memory}", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), code


@inline
def rest(turns):
    """Wait a little, for the turns-th time in a row: on the core at first, then off it."""
    if turns < PAUSES:
        pause()
    else:
        sleep(DURATION)
