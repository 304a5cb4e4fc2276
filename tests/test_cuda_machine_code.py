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
from tests.control_flow import Instruction, blocks_of, interior, loops, share, work_of
from tests.cuda_kernels import REPRESENTATIVE, SPECIALISATIONS, Case
from tests.machine_code import CAPABILITIES, MachineCode, Resources, available, compiled

pytestmark = pytest.mark.skipif(not available(), reason="needs nvidia-cuda-nvcc and nvidia-cuda-nvdisasm, no simulator")

COMPILED = SPECIALISATIONS if os.environ.get("MCELBO_COMPILE_ALL") == "1" else REPRESENTATIVE
MOST_REGISTERS, STATIC_SHARED = 255, 48 << 10
# For 10.0 some kernels with 128 registers for a thread spill up to so many bytes. More registers would halve how many
# blocks fit, there and elsewhere, for the sake of a few stores and loads of each thread.
MAY_SPILL, MOST_SPILLED = ((10, 0),), 16
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


RUNS = [Run(case, capability) for case in COMPILED for capability in CAPABILITIES]
CHOSEN = [pytest.param(run, id=str(run), marks=(pytest.mark.slow,) if run.slow else ()) for run in RUNS]


@pytest.mark.parametrize("run", CHOSEN)
def test_machine_code(run: Run) -> None:
    kernel = run.case.make()
    code = compiled(kernel, run.capability)
    assert_fits(kernel, code)
    if run.capability not in MAY_SPILL:
        assert (code.resources.spilled, code.resources.stack) == (0, 0)
    elif code.resources.stack:
        assert_spills_in_no_loop(code)
    if run.case.single:
        assert ".f64" not in code.ptx
    if run.case.tile is not None:
        path = interior(code.blocks)
        assert_feeds_the_tile(run.case.tile, path)
        # in double precision, whose units take several cycles for an instruction, others find their time
        assert share(path) >= 0.7 or not run.case.single


def assert_fits(kernel: Kernel, code: MachineCode) -> None:
    """As many blocks fit as were meant to, and sums have one order."""
    resources = code.resources
    assert resources.registers <= min(MOST_REGISTERS, REGISTERS // (kernel.threads * kernel.blocks))
    assert resources.shared <= STATIC_SHARED
    assert not ATOMIC.search(code.ptx)


def assert_spills_in_no_loop(code: MachineCode) -> None:
    """A thread stores and loads what it spills once."""
    assert code.resources.stack <= MOST_SPILLED
    bodies = set().union(*loops(code.blocks).values())
    assert not {instruction.kind for index in bodies for instruction in code.blocks[index].instructions} & LOCAL


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


@pytest.mark.parametrize("before", [True, False], ids=["before a loop", "in it"])
def test_a_spill_in_a_loop_is_refused(before: bool) -> None:
    spill, label = "    /*0000*/  STL [R1], R2 ;", ".L_x_0:"
    lines = [
        *([spill, label] if before else [label, spill]),
        "    /*0010*/  @P0 BRA `(.L_x_0) ;",
        "    /*0020*/  EXIT ;",
    ]
    code = MachineCode("", Resources(128, 8, 16, 0), b"")
    code.__dict__["blocks"] = blocks_of("\n".join(lines))
    if before:
        assert_spills_in_no_loop(code)
        return
    with pytest.raises(AssertionError, match="STL"):
        assert_spills_in_no_loop(code)


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
