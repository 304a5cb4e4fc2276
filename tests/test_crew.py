"""Helper threads change no bit of a result, whoever calls, whenever, and with or without them coming."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcelbo_kernels import cpu
from mcelbo_kernels.cpu import crew, schedule
from mcelbo_kernels.problem import Need, Problem
from tests.strategies import problems
from tests.test_grid import assert_same, random_problem


@pytest.fixture(autouse=True)
def _always_worth_a_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "WORTH_A_HELPER", 0)


def assert_equal(one: Any, other: Any) -> None:
    """Bit for bit: moments and gradients."""
    np.testing.assert_array_equal(one[0], other[0])
    assert_same(one[1], other[1])


@given(problem=problems(max_layers=1, names=("sigmoid",), dtypes=(np.float32,)), threads=st.integers(2, 5))
def test_the_number_of_threads_changes_no_bit(problem: Problem, threads: int) -> None:
    need = Need.everything(problem)
    alone = cpu.value_and_gradients(problem, need)
    assert_equal(cpu.value_and_gradients(problem, need, threads), alone)


def test_calls_into_the_kernel_are_cut_by_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(3, 5, 33, 1700)
    need = Need.everything(problem)
    whole = cpu.value_and_gradients(problem, need)
    monkeypatch.setattr(schedule, "CHUNKS_OF_A_CALL", 1)
    assert_equal(cpu.value_and_gradients(problem, need, 2), whole)


def test_many_callers_at_once() -> None:
    problem = random_problem(5, 7, 41, 700)
    need = Need.everything(problem)
    alone = cpu.value_and_gradients(problem, need)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: cpu.value_and_gradients(problem, need, 3), range(64)):
            assert_equal(result, alone)


def test_a_helper_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(3, 5, 33, 700)
    need = Need.everything(problem)
    alone = cpu.value_and_gradients(problem, need)
    late: list[Any] = []
    monkeypatch.setattr(schedule, "call_on_helpers", lambda task, helpers: late.append(task))
    assert_equal(cpu.value_and_gradients(problem, need, 2), alone)
    for task in late:
        task()  # finds nothing to do
    assert late


def test_an_interrupt_before_the_leader_leads_sends_the_helpers_home(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(3, 5, 33, 700)
    cpu.errors(problem)
    allocate, arrived = schedule.thread_buffers, threading.Event()

    def interrupted(*arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            arrived.set()
            return allocate(*arguments)
        arrived.wait(timeout=30)
        raise KeyboardInterrupt

    monkeypatch.setattr(schedule, "thread_buffers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cpu.errors(problem, 2)
    # every thread of the pool must come free for a task that needs all of them at once
    everyone = threading.Barrier(1 + (os.cpu_count() or 1))
    crew.call_on_helpers(lambda: everyone.wait(timeout=30), os.cpu_count() or 1)
    everyone.wait(timeout=30)


def test_a_call_while_the_interpreter_shuts_down_does_without_helpers() -> None:
    script = """
import atexit
from mcelbo_kernels import cpu
from mcelbo_kernels.cpu import schedule
from tests.test_grid import random_problem

schedule.WORTH_A_HELPER = 0
problem = random_problem(3, 5, 33, 700)
first = cpu.errors(problem, 2)
cpu.errors(problem, 2)
atexit.register(lambda: print((cpu.errors(problem, 2) == first).all()))
"""
    run = subprocess.run([sys.executable, "-c", script], check=True, timeout=120, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("True\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_helpers_of_its_own() -> None:
    script = """
import os
import numpy as np
from mcelbo_kernels import cpu
from mcelbo_kernels.cpu import schedule
from mcelbo_kernels.problem import Need
from tests.test_grid import random_problem

schedule.WORTH_A_HELPER = 0
problem = random_problem(5, 7, 41, 700)
need = Need.everything(problem)
for _ in range(3):
    parent = cpu.value_and_gradients(problem, need, 2)
child = os.fork()
if not child:
    same = all(np.array_equal(cpu.value_and_gradients(problem, need, 2)[1].mu, parent[1].mu) for _ in range(20))
    os._exit(0 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_ctrl_c_stops_a_long_call() -> None:
    script = """
from mcelbo_kernels import cpu
from tests.test_grid import random_problem

cpu.errors(random_problem(1, 1, 784, 6), 2)
problem = random_problem(1, 1, 784, 50_000_000)
print("ready", flush=True)
cpu.errors(problem, 2)
print("ended by itself")
"""
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        output, error = run.communicate(timeout=60)
    assert output == ""
    assert "KeyboardInterrupt" in error


def test_the_pool_starts_when_it_is_first_needed() -> None:
    script = "from mcelbo_kernels import cpu; from mcelbo_kernels.cpu import crew; assert crew._pool is None"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert crew.call_on_helpers(lambda: None, 1) is None
