"""torch's team is borrowed where there is one, works wherever torch does, and is given back as it was."""

from __future__ import annotations

import ctypes
import doctest
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from torch import Tensor, nn

import mcelbo
from mcelbo import threads
from mcelbo_kernels import cpu
from mcelbo_kernels.cpu import schedule

needs_team = pytest.mark.skipif(threads.torch_team() is None, reason="torch has no team to lend")
PART = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@pytest.fixture(autouse=True)
def _always_worth_a_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "WORTH_A_HELPER", 0)


def loss_and_gradients(scale: float = 1.0) -> tuple[Tensor, ...]:
    """Return the loss of a small affine decoder, and its gradients."""
    generator = torch.Generator().manual_seed(0)
    x, mu, logvar = (torch.randn(5, size, generator=generator) * scale for size in (41, 7, 7))
    layer = nn.Linear(7, 41)
    layer.load_state_dict(
        {"weight": torch.randn(41, 7, generator=generator), "bias": torch.randn(41, generator=generator)}
    )
    decoder = nn.Sequential(layer, nn.Sigmoid())
    leaves = (mu.requires_grad_(), logvar.requires_grad_(), *decoder.parameters())
    loss = mcelbo.expected_squared_error(x, mu, logvar, decoder, num_samples=300, seed=3)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def run_script(text: str) -> str:
    """Run a script that may use what this module holds, and return what it prints."""
    preamble = "import os, torch, mcelbo\nfrom mcelbo_kernels import cpu\nfrom mcelbo_kernels.cpu import schedule\n"
    preamble += "from tests.test_threads import loss_and_gradients, same\nschedule.WORTH_A_HELPER = 0\n"
    command = [sys.executable, "-c", preamble + text]
    return subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' torch runs on another library")
def test_the_team_is_found_where_torch_says_that_it_has_one() -> None:
    has_one = "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()
    assert (threads.torch_team() is not None) == (has_one and not threads.forked())
    assert cpu.present_team() == threads.torch_team()


def test_no_team_is_no_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert threads.torch_team() is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert threads.torch_team() is None


@needs_team
def test_the_examples_run() -> None:
    assert doctest.testmod(threads).failed == 0


@needs_team
def test_no_setting_of_torch_numba_or_openmp_is_changed() -> None:
    openmp = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))

    def settings() -> tuple[int, ...]:
        names = ("omp_get_max_threads", "omp_get_dynamic", "omp_get_num_threads", "omp_get_max_active_levels")
        return torch.get_num_threads(), numba.get_num_threads(), *(getattr(openmp, name)() for name in names)

    before = torch.get_num_threads()
    settings()  # the first time numba is asked, it changes OpenMP's
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found = settings()
            loss_and_gradients()
            assert settings() == found
            assert found[0] == count
    finally:
        torch.set_num_threads(before)


def test_threads_of_python_that_use_torch_too() -> None:
    alone = loss_and_gradients()

    def mixed(_: int) -> tuple[Tensor, ...]:
        torch.ones(300, 300) @ torch.ones(300, 300)
        return loss_and_gradients()

    with ThreadPoolExecutor(8) as pool:
        assert all(same(found, alone) for found in pool.map(mixed, range(64)))


def test_within_a_backward_pass() -> None:
    alone = loss_and_gradients()
    found: list[tuple[Tensor, ...]] = []

    class Nested(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            with torch.enable_grad():
                found.append(loss_and_gradients())
            return upstream

    Nested.apply(torch.ones(3, requires_grad=True)).sum().backward()
    assert same(found[0], alone)


@needs_team
def test_within_a_parallel_region_of_openmp() -> None:
    team = threads.torch_team()
    assert team is not None
    run = ctypes.CFUNCTYPE(None, PART, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(team.address)
    alone, found = loss_and_gradients(), list[tuple[Tensor, ...]]()
    part = PART(lambda _: found.append(loss_and_gradients()))
    run(part, None, 2, 0)
    assert len(found) == 2
    assert all(same(each, alone) for each in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_within_the_workers_of_a_loader() -> None:
    text = """
class Losses(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return list(loss_and_gradients())

def use_two_threads(worker):
    torch.set_num_threads(2)

if __name__ == "__main__":
    torch.ones(500, 500) @ torch.ones(500, 500)
    alone = loss_and_gradients()
    for initialise in (None, use_two_threads):
        loader = torch.utils.data.DataLoader(
            Losses(), batch_size=None, num_workers=2, worker_init_fn=initialise, multiprocessing_context="fork"
        )
        print([same(found, alone) for found in loader])
"""
    assert run_script(text) == 2 * "[True, True, True, True]\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_that_imports_what_its_parent_did_not() -> None:
    """OpenMP would wait in the child for threads that only the parent has."""
    text = """
import os, torch
torch.ones(500, 500) @ torch.ones(500, 500)
child = os.fork()
if not child:
    from tests.test_threads import cpu, loss_and_gradients, schedule
    schedule.WORTH_A_HELPER = 0
    torch.set_num_threads(2)
    loss_and_gradients()
    os._exit(0 if cpu.present_team() is None else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-c", text]
    assert subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout == "0\n"
