"""The board: no task is taken twice, and waiting ends when the work does without keeping a core busy."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mcelbo_kernels._compile import jit
from mcelbo_kernels.cpu import board, rest
from mcelbo_kernels.cpu.board import DONE, PHASE, TASK, TICKET
from mcelbo_kernels.problem import Array


@jit
def take(words: Array, tasks: int) -> int:
    """Take tasks until none is left or the board is closed; return the sum of their numbers."""
    total = 0
    while True:
        ticket = board.atomic_add(words, TICKET, 1)
        if ticket < 0 or ticket & TASK >= tasks:
            return total
        total += ticket & TASK
        board.atomic_add(words, DONE, 1)


@jit
def begin(words: Array, phase: int) -> None:
    """Open a phase."""
    board.open_phase(words, phase)


@jit
def wait(words: Array, tasks: int) -> None:
    """Wait for the tasks of a phase."""
    board.wait_for(words, tasks)


def waited(words: Array, tasks: int, meanwhile: Callable[[], object]) -> float:
    """Return the processor's time that a thread spends on waiting while `meanwhile` runs here."""

    def spent() -> float:
        start = time.thread_time()
        wait(words, tasks)
        return time.thread_time() - start

    wait(words, 0)
    with ThreadPoolExecutor(1) as pool:
        time_of_thread = pool.submit(spent)
        meanwhile()
        return time_of_thread.result(timeout=30)


def test_a_new_board_has_nothing_to_take() -> None:
    words = board.new_board(5, 3)
    assert take(words, 10) == 0
    assert (words[board.RUN], words[board.THREADS]) == (5, 3)


def test_every_task_is_taken_once() -> None:
    words, tasks = board.new_board(), 100_000
    begin(words, 1)
    with ThreadPoolExecutor(8) as pool:
        sums = pool.map(lambda _: take(words, tasks), range(8))
    assert sum(sums) == tasks * (tasks - 1) // 2
    assert words[DONE] == tasks
    begin(words, 2)
    assert (words[TICKET], words[DONE]) == (2 << PHASE, 0)


def test_a_closed_board_has_nothing_to_take_however_often_it_is_asked() -> None:
    words = board.new_board()
    begin(words, 3)
    board.close(words)
    assert [take(words, 10) for _ in range(100)] == [0] * 100


def test_waiting_ends_with_the_last_task() -> None:
    words = board.new_board()
    begin(words, 0)
    waited(words, 50, lambda: take(words, 50))
    assert words[DONE] == 50


@pytest.mark.skipif(rest.DURATION == 0, reason="this system's sleeps are too long: others are only let run")
def test_a_thread_that_waits_long_leaves_its_core_to_others() -> None:
    words = board.new_board()

    def long_work() -> None:
        time.sleep(0.5)
        words[DONE] = 1

    assert waited(words, 1, long_work) < 0.25
