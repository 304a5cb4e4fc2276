"""Helper threads change no bit of a result, whoever they are, whoever calls, whenever, with or without them coming."""

from __future__ import annotations

import doctest
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcelbo.threads import torch_team
from mcelbo_kernels import cpu
from mcelbo_kernels.cpu import crew, schedule
from mcelbo_kernels.problem import Draw, Need, Problem
from tests.strategies import problems
from tests.test_grid import assert_same, random_problem

PREAMBLE = """
import os
import numpy as np
from mcelbo.threads import torch_team
from mcelbo_kernels import cpu
from mcelbo_kernels.cpu import schedule
from mcelbo_kernels.problem import Need
from tests.test_grid import random_problem

schedule.WORTH_A_HELPER = 0
"""


@pytest.fixture(autouse=True, params=["pool", "team"])
def helpers_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let any call have helpers, from either source."""
    team, present = torch_team(), cpu.present_team()
    if request.param == "team" and team is None:
        pytest.skip("torch has no team to lend")
    monkeypatch.setattr(schedule, "WORTH_A_HELPER", 0)
    cpu.use_team(team if request.param == "team" else None)
    yield request.param
    cpu.use_team(present)


@pytest.fixture
def only_the_pool(helpers_from: str) -> None:
    if helpers_from != "pool":
        pytest.skip("a team comes at once, or the call waits for it")


@pytest.mark.usefixtures("only_the_pool")
def test_each_kind_of_noise_is_compiled_before_helpers_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_compiled", set())
    problem = random_problem(2, 5, 33, 64)
    for known, sampler in enumerate(("iid", "sobol"), start=1):
        schedule.errors(replace(problem, draw=Draw(64, 1, sampler)), 2)
        assert len(crew._compiled) == known


@pytest.mark.usefixtures("only_the_pool")
def test_a_pool_that_starts_no_thread_keeps_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    problem = random_problem(2, 5, 33, 64)
    expected = schedule.errors(problem)
    monkeypatch.setattr(crew, "_pool", None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        np.testing.assert_array_equal(schedule.errors(problem, 2), expected)
        assert crew._pool is None
    np.testing.assert_array_equal(schedule.errors(problem, 2), expected)
    assert crew._pool is not None


def script(helpers_from: str, text: str) -> list[str]:
    """Return the command that runs `text` with those helpers."""
    team = "torch_team()" if helpers_from == "team" else "None"
    return [sys.executable, "-c", f"{PREAMBLE}\ncpu.use_team({team})\n{text}"]


def assert_equal(one: Any, other: Any) -> None:
    """Bit for bit: moments and gradients."""
    np.testing.assert_array_equal(one[0], other[0])
    assert_same(one[1], other[1])


@given(problem=problems(max_layers=1, names=("sigmoid",), dtypes=(np.float32,)), threads=st.integers(2, 5))
def test_the_number_of_threads_changes_no_bit(problem: Problem, threads: int) -> None:
    need = Need.everything(problem)
    alone = cpu.value_and_gradients(problem, need)
    assert_equal(cpu.value_and_gradients(problem, need, threads), alone)


@pytest.mark.parametrize("threads", [2, 3])
def test_a_hundred_runs_give_the_same_bits(threads: int) -> None:
    problem = random_problem(3, 5, 33, 700)
    need = Need.everything(problem)
    alone = cpu.value_and_gradients(problem, need)
    for _ in range(100):
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


def test_more_threads_than_cores_beside_busy_ones_come_to_an_end() -> None:
    problem = random_problem(5, 7, 41, 700)
    alone = cpu.errors(problem)
    done = threading.Event()

    def be_busy() -> None:
        while not done.is_set():
            cpu.errors(problem)

    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(be_busy)
        try:
            for _ in range(10):
                np.testing.assert_array_equal(cpu.errors(problem, 4 * (os.cpu_count() or 1)), alone)
        finally:
            done.set()


def test_helpers_help_with_the_first_call(helpers_from: str) -> None:
    """The kernel is compiled by the thread that calls, even so."""
    text = """
import threading

numbers, compiling, work = set(), set(), schedule.work
def seen(*arguments):
    if not work.signatures:
        compiling.add(threading.get_ident())
    numbers.add(arguments[-1])
    work(*arguments)
schedule.work = seen
cpu.errors(random_problem(3, 5, 33, 700), 2)
print(compiling == {threading.get_ident()}, *sorted(numbers))
"""
    # by the pool's last thread the call may be over: what counts is that it was called
    run = subprocess.run(script(helpers_from, text), check=True, timeout=120, capture_output=True, text=True)
    assert run.stdout in {"team": ["True -1\n"], "pool": ["True 0\n", "True 0 1\n"]}[helpers_from]


@pytest.mark.usefixtures("only_the_pool")
def test_a_helper_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(3, 5, 33, 700)
    need = Need.everything(problem)
    alone = cpu.value_and_gradients(problem, need)
    late: list[Any] = []
    monkeypatch.setattr(crew, "call_on_pool", lambda task, helpers: late.append(task))
    assert_equal(cpu.value_and_gradients(problem, need, 2), alone)
    for task in late:
        task(1)  # finds nothing to do
    assert late


@pytest.mark.usefixtures("only_the_pool")
def test_an_interrupt_before_the_leader_leads_sends_the_helpers_home(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(3, 5, 33, 700)
    cpu.errors(problem, 2)
    work, arrived = schedule.work, threading.Event()

    def interrupted(*arguments: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            arrived.wait(timeout=30)
            raise KeyboardInterrupt
        arrived.set()
        work(*arguments)

    monkeypatch.setattr(schedule, "work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cpu.errors(problem, 2)
    # every thread of the pool must come free for a task that needs all of them at once
    everyone = threading.Barrier(1 + (os.cpu_count() or 1))
    crew.call_on_pool(lambda number: everyone.wait(timeout=30), os.cpu_count() or 1)
    everyone.wait(timeout=30)


def test_a_call_while_the_interpreter_shuts_down_is_right(helpers_from: str) -> None:
    text = """
import atexit

problem = random_problem(3, 5, 33, 700)
first = cpu.errors(problem, 2)
atexit.register(lambda: print((cpu.errors(problem, 2) == first).all()))
"""
    run = subprocess.run(script(helpers_from, text), check=True, timeout=120, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("True\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_helpers_of_its_own(helpers_from: str) -> None:
    text = """
problem = random_problem(5, 7, 41, 700)
need = Need.everything(problem)
for _ in range(3):
    parent = cpu.value_and_gradients(problem, need, 2)
child = os.fork()
if not child:
    same = all(np.array_equal(cpu.value_and_gradients(problem, need, 2)[1].mu, parent[1].mu) for _ in range(20))
    os._exit(0 if same and cpu.present_team() is None else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(cpu.value_and_gradients(problem, need, 2)[1].mu, parent[1].mu)
"""
    subprocess.run(script(helpers_from, text), check=True, timeout=120)


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_ctrl_c_stops_a_long_call(helpers_from: str) -> None:
    text = """
cpu.errors(random_problem(1, 1, 784, 6), 2)
problem = random_problem(1, 1, 784, 50_000_000)
print("ready", flush=True)
cpu.errors(problem, 2)
print("ended by itself")
"""
    pipe = subprocess.PIPE
    with subprocess.Popen(script(helpers_from, text), stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        output, error = run.communicate(timeout=60)
    assert output == ""
    assert "KeyboardInterrupt" in error


def test_a_call_after_an_interrupted_one_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(3, 5, 33, 1700)
    monkeypatch.setattr(schedule, "CHUNKS_OF_A_CALL", 1)
    alone, work = cpu.errors(problem), schedule.work

    def interrupted_behind(*arguments: Any) -> None:
        work(*arguments)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(schedule, "work", interrupted_behind)
        for _ in range(20):
            with pytest.raises(KeyboardInterrupt):
                cpu.errors(problem, 2)
    np.testing.assert_array_equal(cpu.errors(problem, 2), alone)


def test_the_pool_starts_when_it_is_first_needed() -> None:
    text = "from mcelbo_kernels import cpu; from mcelbo_kernels.cpu import crew; assert crew._pool is None"
    subprocess.run([sys.executable, "-c", text], check=True, timeout=60)
    assert crew.call_on_pool(lambda number: None, 1) is None


def test_the_examples_run() -> None:
    assert doctest.testmod(crew).failed == 0
