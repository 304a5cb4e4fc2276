"""A team calls the kernel again: as many of its threads as come, each under its own number."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from mcelbo_kernels import cpu
from mcelbo_kernels._compile import jit
from mcelbo_kernels.cpu import schedule
from mcelbo_kernels.cpu.team import call_again
from mcelbo_kernels.problem import Array, Need
from tests.test_crew import assert_equal
from tests.test_grid import random_problem

PART = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)

Member = Callable[[], None]


def only_the_caller(member: Member, threads: int) -> None:
    """Do what OpenMP does within a parallel region."""
    member()


def one_after_another(member: Member, threads: int) -> None:
    """Let all come, each when the one before has left."""
    for _ in range(threads):
        member()


def at_once(member: Member, threads: int) -> None:
    """Let all come at once, none of them the caller."""
    members = [threading.Thread(target=member) for _ in range(threads)]
    for each in members:
        each.start()
    for each in members:
        each.join()


def lend(lender: Callable[[Member, int], None]) -> tuple[object, int]:
    """Return a C function like GOMP_parallel, and its address."""

    def run(part: int, data: int, threads: int, flags: int) -> None:
        lender(lambda: PART(part)(data), threads)

    function = RUN(run)
    return function, ctypes.cast(function, ctypes.c_void_p).value or 0


@pytest.fixture
def _own_team() -> Iterator[None]:
    present = cpu.present_team()
    yield
    cpu.use_team(present)


@jit
def shared(run: int, threads: int, pair: tuple[float, int], marks: Array, number: int) -> None:
    """Write what each member was given."""
    if number < 0:
        call_again(run, threads)
        return
    marks[number, 0] += pair[0]
    marks[number, 1] += pair[1]


@pytest.mark.parametrize("lender", [only_the_caller, one_after_another, at_once])
def test_members_get_the_arguments_and_numbers_from_zero_on(lender: Callable[[Member, int], None]) -> None:
    kept, address = lend(lender)
    marks = np.zeros((4, 2))
    shared(address, 3, (0.5, 7), marks, -1)
    came = 1 if lender is only_the_caller else 3
    np.testing.assert_array_equal(marks, [[0.5, 7]] * came + [[0, 0]] * (4 - came))
    assert kept


@pytest.mark.usefixtures("_own_team")
@pytest.mark.parametrize("lender", [only_the_caller, one_after_another, at_once])
def test_whoever_comes_changes_no_bit(lender: Callable[[Member, int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(3, 5, 33, 1700)
    need = Need.everything(problem)
    alone = cpu.value_and_gradients(problem, need)
    kept, address = lend(lender)
    cpu.use_team(cpu.Team("a team of the test's", address))
    monkeypatch.setattr(schedule, "WORTH_A_HELPER", 0)
    for _ in range(10):
        assert_equal(cpu.value_and_gradients(problem, need, 3), alone)
    assert kept
