"""What the speed of the CUDA kernels stands on, as their machine code shows it: no device is needed.

For compute capabilities 7.5, 8.0, 9.0 and 10.0 those of `REPRESENTATIVE` are compiled, and without `slow` those of
float32 for 9.0 alone, with the large tile. With MCELBO_COMPILE_ALL=1 in the environment all of `SPECIALISATIONS` are,
for all four.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda[cu13], nvidia-cuda-nvcc and nvidia-cuda-nvdisasm")

from mcelbo_kernels.cuda.seam import Kernel, cuda, float32, int32, pointer
from mcelbo_kernels.cuda.tile import LARGE, REGISTERS, SLICE, Tile
from tests.control_flow import Instruction, interior, share, work_of
from tests.cuda_kernels import REPRESENTATIVE, SPECIALISATIONS, Case
from tests.machine_code import CAPABILITIES, MachineCode, available, compiled

pytestmark = pytest.mark.skipif(not available(), reason="needs nvidia-cuda-nvcc and nvidia-cuda-nvdisasm, no simulator")

COMPILED = SPECIALISATIONS if os.environ.get("MCELBO_COMPILE_ALL") == "1" else REPRESENTATIVE
MOST_REGISTERS, STATIC_SHARED = 255, 48 << 10
MOST_SPILLED = 16  # bytes, see `Run.spills`
LOCAL, ATOMIC = {"LDL", "STL"}, re.compile(r"\b(atom|red)\.")


class Run(NamedTuple):
    """A kernel and the compute capability that it is compiled for."""

    case: Case
    capability: tuple[int, int]

    def __str__(self) -> str:
        return "{}-sm_{}{}".format(self.case.name, *self.capability)

    @property
    def slow(self) -> bool:
        quick = self.case in REPRESENTATIVE and self.case.real == float32 and self.case.tile in (None, LARGE)
        return not quick or self.capability != (9, 0)

    @property
    def spills(self) -> bool:
        """Whether the compiler may spill a few numbers outside of the main loop.

        It does for 10.0, of the last layer's large tile, with 128 registers for a thread. More of them would halve how
        many blocks fit, there and elsewhere, for the sake of a few stores and loads.
        """
        return self.capability == (10, 0) and self.case.name.startswith("layers.last-large-")


RUNS = [Run(case, capability) for case in COMPILED for capability in CAPABILITIES]
CHOSEN = [pytest.param(run, id=str(run), marks=(pytest.mark.slow,) if run.slow else ()) for run in RUNS]


@pytest.mark.parametrize("run", CHOSEN)
def test_machine_code(run: Run) -> None:
    kernel = run.case.make()
    code = compiled(kernel, run.capability)
    assert_fits(kernel, code, MOST_SPILLED if run.spills else 0)
    if run.case.single:
        assert ".f64" not in code.ptx
    if run.case.tile is not None:
        path = interior(code.blocks)
        assert not {instruction.kind for instruction in path} & LOCAL
        assert_feeds_the_tile(run.case.tile, path)
        # in double precision, whose units take several cycles for an instruction, others find their time
        assert share(path) >= 0.7 or not run.case.single


def assert_fits(kernel: Kernel, code: MachineCode, spilled: int) -> None:
    """As many blocks fit as were meant to, no more of a thread lies in memory, and sums have one order."""
    resources = code.resources
    assert resources.registers <= min(MOST_REGISTERS, REGISTERS // (kernel.threads * kernel.blocks))
    assert resources.shared <= STATIC_SHARED
    assert resources.stack <= spilled
    assert resources.spilled <= 2 * spilled
    assert not ATOMIC.search(code.ptx)


def assert_feeds_the_tile(tile: Tile, path: list[Instruction]) -> None:
    """A slice of the main loop takes one barrier, and loads of four numbers."""
    slices, rest = divmod(work_of(path).multiplied, tile.rows * tile.columns * SLICE)
    assert slices >= 1
    assert rest == 0
    assert sum(instruction.name.startswith("BAR.") for instruction in path) == slices
    loads = [instruction.name for instruction in path if instruction.name.startswith("LDS")]
    assert all(name.endswith(".128") for name in loads)


def kernel_of(function: Callable[..., None], *, threads: int = 128, blocks: int = 1) -> Kernel:
    return Kernel(function.__name__, function, (pointer(float32), int32), threads, blocks)


def test_an_array_at_an_index_of_run_time_shows_as_a_stack_frame() -> None:
    # shorter ones become registers and a choice between them
    def indexed(numbers, i):
        kept = cuda.local.array(256, float32)
        for k in range(256):
            kept[k] = numbers[k] * numbers[k]
        for k in range(256):
            numbers[k] = kept[(k + i) % 256]

    code = compiled(kernel_of(indexed), (9, 0))
    assert code.resources.stack == 4 * 256
    assert {instruction.kind for instruction in code.instructions} >= LOCAL


def test_too_few_registers_show_as_spills() -> None:
    def crowded(numbers, i):
        kept = cuda.local.array(64, float32)
        for k in range(64):
            kept[k] = numbers[k * i]
        cuda.syncthreads()
        for k in range(64):
            numbers[k * i] = kept[k] * kept[63 - k]

    assert compiled(kernel_of(crowded), (9, 0)).resources.spilled == 0
    crowded_out = compiled(kernel_of(crowded, threads=1024, blocks=2), (9, 0)).resources
    assert crowded_out.registers <= 32
    assert crowded_out.spilled > 0


def test_an_atomic_sum_shows_in_the_ptx() -> None:
    def summed(numbers, i):
        cuda.atomic.add(numbers, 0, numbers[i])

    kernel = Kernel("summed", summed, (float32[:], int32), 128, 1)
    assert ATOMIC.search(compiled(kernel, (9, 0)).ptx)


def test_a_constant_in_double_precision_shows_in_the_ptx() -> None:
    def scaled(factor):
        def kernel(numbers, i):
            numbers[i] = numbers[i] * factor

        return compiled(kernel_of(kernel), (9, 0)).ptx

    assert ".f64" in scaled(0.1)
    assert ".f64" not in scaled(float32(0.1))
