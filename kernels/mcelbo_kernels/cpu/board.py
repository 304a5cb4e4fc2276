"""A list of tasks that any number of threads work off: two 64-bit words, changed by atomic operations only.

A call runs through phases, and each phase is a number of independent tasks. One thread, the leader, opens the phases
one after another; every thread takes tasks until none is left. The leader needs nobody: a thread that comes late, or
never, changes only how long it takes.

    TICKET   phase * 2^32 + the next task of that phase, negative once the call is over
    DONE     how many tasks of the phase are finished

Two more words never change: RUN, the address of a function that lends a team, and THREADS, how many it is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mcelbo_kernels._compile import inline, jit
from mcelbo_kernels.cpu.rest import rest
from mcelbo_kernels.cpu.tile import pointer
from mcelbo_kernels.problem import Array

TICKET, DONE, RUN, THREADS = 0, 8, 16, 17  # a cache line apart
PHASE = 32
TASK = (1 << PHASE) - 1
OVER = -(1 << 62)
# The number under which a kernel is called that is to have a team call it again.
TEAM = -1


def new_board(run: int = 0, threads: int = 1) -> Array:
    """Return a board on which nothing is open yet."""
    board = np.zeros(24, np.int64)
    board[TICKET], board[RUN], board[THREADS] = TASK, run, threads
    return board


@intrinsic
def atomic_add(typing: Any, board: Any, index: Any, value: Any) -> Any:
    """board[index] += value; return what it was before."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data, place, amount = arguments
        return builder.atomic_rmw("add", pointer(context, builder, board, data, place), amount, "acq_rel")

    return types.int64(board, types.intp, types.int64), code


@intrinsic
def atomic_load(typing: Any, board: Any, index: Any) -> Any:
    """Return board[index], and see all that was written before it was stored."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(pointer(context, builder, board, *arguments), "acquire", 8)

    return types.int64(board, types.intp), code


@intrinsic
def atomic_store(typing: Any, board: Any, index: Any, value: Any) -> Any:
    """board[index] = value, and let whoever loads it see all that was written before."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data, place, new = arguments
        builder.store_atomic(new, pointer(context, builder, board, data, place), "release", 8)
        return context.get_dummy_value()

    return types.void(board, types.intp, types.int64), code


@inline
def open_phase(board, phase):
    """Let the tasks of a phase be taken; those of the phase before must be finished."""
    atomic_store(board, DONE, 0)
    atomic_store(board, TICKET, phase << PHASE)


@inline
def wait_for(board, tasks):
    """Wait until all tasks of the phase are finished."""
    turns = 0
    while atomic_load(board, DONE) < tasks:
        rest(turns)
        turns += 1


@inline
def go_on(board, number, opened, last, tasks, turns):
    """Where no task is left to take: open what follows phase `opened`, or close, as number 0; rest as another.

    Returns the phase that is open then, by what number 0 knows, and how often another has rested.
    """
    if number != 0:
        rest(turns)
        return opened, turns + 1
    if opened >= 0:
        wait_for(board, tasks)
    if opened == last:
        close(board)
    else:
        open_phase(board, opened + 1)
    return opened + 1, turns


@jit
def close(board):
    """Send every thread home."""
    atomic_store(board, TICKET, OVER)
