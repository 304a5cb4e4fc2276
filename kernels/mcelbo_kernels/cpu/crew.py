"""Which threads help a call along: a team that another library lends, or else a pool of our own.

A kernel that is shared takes a board and a number last, `kernel(..., board, number)`. Number 0 leads, the others take
tasks until the board is closed, and TEAM stands for all threads of the team that the board names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

from mcelbo_kernels.cpu.board import TEAM, close, new_board
from mcelbo_kernels.problem import Array

LEADER = 0


class Team(NamedTuple):
    """Threads that another library lends.

    Attributes
    ----------
    name : str
        What people call it.
    address : int
        That of a C function `void run(void (*part)(void *), void *data, unsigned threads, unsigned flags)`, like GNU
        OpenMP's GOMP_parallel: up to `threads` threads, the calling one among them, call part(data), and it returns
        when all of them have.
    """

    name: str
    address: int


_team: Team | None = None
_lock = Lock()
_pool: ThreadPoolExecutor | None = None
# What the pool may be called on: a thread that compiles can meet a lock that the importing thread holds.
_compiled: set[Hashable] = set()


def use_team(team: Team | None) -> None:
    """Let the team help from the next call on, or the pool if there is none; a forked child comes back to the pool.

    Parameters
    ----------
    team : Team, optional
        Its threads are entered by compiled code alone, without Python and its lock.

    Examples
    --------
    >>> use_team(None)
    >>> present_team()
    """
    global _team
    _team = team


def present_team() -> Team | None:
    """Return the team that helps, None where it is the pool that does."""
    return _team


def carry_out(take_part: Callable[[Array, int], object], helpers: int, kernel: Hashable) -> None:
    """Call a shared kernel, take_part(board, number), on this thread and up to `helpers` others.

    Parameters
    ----------
    take_part : callable
        Numbers are below 1 + helpers.
    helpers : int
        How many may come; the work is done whether they do or not.
    kernel : hashable
        What the compiled code depends on.
    """
    team = _team
    if helpers and team is not None:
        take_part(new_board(team.address, helpers + 1), TEAM)
        return
    board = new_board()
    try:
        if helpers:
            compile_here(take_part, kernel)
            call_on_pool(lambda number: take_part(board, number), helpers)
        take_part(board, LEADER)
    finally:
        # An interrupt may come before the leader leads: helpers must not wait for it then.
        close(board)


def compile_here(take_part: Callable[[Array, int], object], kernel: Hashable) -> None:
    """Compile the kernel, or load it, by a call that finds its board closed."""
    if kernel not in _compiled:
        nothing = new_board()
        close(nothing)
        take_part(nothing, LEADER)
        _compiled.add(kernel)


def call_on_pool(task: Callable[[int], object], helpers: int) -> None:
    """Have threads call task(1) to task(helpers) soon; it must return by itself once there is nothing left to do."""
    global _pool
    with _lock:
        try:
            if _pool is None:
                _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="mcelbo")
            for number in range(1, helpers + 1):
                _pool.submit(task, number)
        except RuntimeError:
            # Where no thread can be started, as when the interpreter is shutting down, there is no help; the pool would
            # keep the task, and with it all that the call computes with.
            _pool = None


def _start_anew() -> None:
    """Forget in a forked child the threads that only its parent has: those of the pool, and the team's."""
    global _lock, _pool, _team
    _lock, _pool, _team = Lock(), None, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
