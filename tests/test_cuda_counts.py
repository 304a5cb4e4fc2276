"""The instructions and bytes that the model of the CUDA kernels counts, against what interpreted kernels execute."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the CUDA kernels, is not installed")

from mcelbo_kernels.cuda import schedule
from mcelbo_kernels.cuda.model import launches
from mcelbo_kernels.cuda.seam import Kernel, flat
from mcelbo_kernels.problem import Draw, Need
from tests import cuda_targets as cuda
from tests.ptx import launch as interpret
from tests.test_cuda_schedule import stack


class Counter(cuda.Interpreter):
    """A device that interprets kernels, and counts what they execute."""

    def __init__(self) -> None:
        self.executed: list[tuple[Kernel, dict[str, int]]] = []

    def launch(self, kernel: Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
        values = (0 if value is None else value for value in flat(arguments))
        self.executed.append((kernel, interpret(cuda.compiled(kernel), blocks, kernel.threads, *values)))


def executed(counts: dict[str, int], *starts: str, kind: str = "") -> int:
    """How often threads executed opcodes of a kind that start so."""
    return sum(count for code, count in counts.items() if code.startswith(starts) and code.endswith(kind))


def bytes_of(counts: dict[str, int], start: str) -> int:
    """How many bytes threads loaded or stored as float32, in vectors of four numbers or one by one."""
    return 4 * executed(counts, start, kind="f32") + 12 * executed(counts, start, kind="v4.f32")


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(32, 128), (9, 70, 128), (1, 784)])
def test_what_interpreted_kernels_execute(widths: tuple[int, ...]) -> None:
    problem, target = stack(widths, 4, Draw(32, 5)), Counter()
    need = Need(False, False, True, True, ((True, True),) * (len(widths) - 1))
    call = schedule.Call(cuda.on_device(problem), need, cuda.seed_of(problem), target)
    call.run()
    for launch, (kernel, counts) in zip(launches(call.kind), target.executed, strict=True):
        assert launch.name == kernel.name
        assert launch.shared == sum(cuda.compiled(kernel).shared.values())
        # the latents' lanes without a latent idle, but in warps that the others keep
        idle = 16 / 9 if launch.label == "latent_gradient" and widths[0] == 9 else 1
        floats = executed(counts, "add", "sub", "mul", "fma", "neg", kind="f32")
        assert launch.fmas + launch.floats == pytest.approx(idle * floats, rel=0.02)
        # machine code takes several instructions for one of PTX on 64-bit integers, of which sums are full, and none or
        # one to copy a register
        most = sum(counts.values())
        least = most - executed(counts, "mov")
        total = launch.fmas + launch.floats + launch.others + launch.special + launch.wide
        assert 0.85 * idle * least < total < 1.6 * idle * most
        if launch.label in ("backward", "weight_gradient"):
            assert launch.fmas == counts["fma.rn.f32"]
            assert launch.read == bytes_of(counts, "ld.global")
            assert launch.written == bytes_of(counts, "st.global")
            assert total == pytest.approx(least, rel=0.15)
