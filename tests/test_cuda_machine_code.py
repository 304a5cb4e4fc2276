"""What the speed of the CUDA kernels stands on, as their machine code shows it: no device is needed.

For compute capabilities 8.0 and 9.0 all of `SPECIALISATIONS` are compiled, for 7.5 and 10.0 those of `REPRESENTATIVE`,
and without `slow` those of float32 for 9.0 alone, with the large tile.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda[cu13], nvidia-cuda-nvcc and nvidia-cuda-nvdisasm")

from mcelbo_kernels.cuda.seam import Kernel, cuda, float32, int32, pointer
from mcelbo_kernels.cuda.tile import LARGE, REGISTERS, SLICE
from tests.control_flow import interior, share, work_of
from tests.cuda_kernels import REPRESENTATIVE, SPECIALISATIONS, Case
from tests.machine_code import CAPABILITIES, Resources, available, compiled

pytestmark = pytest.mark.skipif(not available(), reason="needs nvidia-cuda-nvcc and nvidia-cuda-nvdisasm, no simulator")

ALL_COMPILED = ((8, 0), (9, 0))
MOST_REGISTERS, STATIC_SHARED = 255, 48 << 10
LOCAL, ATOMIC = {"LDL", "STL"}, {"ATOM", "ATOMG", "ATOMS", "RED", "REDG"}

INDEXED = "the loop over the tile behind the product is not unrolled, and indexes the accumulator"
SPILLED = "at most 72 bytes are spilled beside 255 registers"
# why kernels keep something of a thread in local memory, by patterns of their names
LIES_IN_MEMORY = {
    "layers.hidden-(large|small)-.*-(tanh|sigmoid|softplus|elu|gelu|gelu_tanh|silu)-": INDEXED,
    "layers.hidden-(large|small)-float32-relu-.*-centred-sm_80": INDEXED,
    "layers.hidden-narrow-float32-((tanh|softplus|elu|gelu)-|gelu_tanh-.*-sm_(75|80|90))": INDEXED,
    "layers.hidden-narrow-float64-((tanh|sigmoid|softplus|elu|gelu|gelu_tanh)-|silu-.*-sm_(75|80|90))": INDEXED,
    "layers.last-(large|small)-float32-gelu-": INDEXED,
    "layers.last-small-float64-((elu|gelu_tanh)-|identity-bernoulli-.*-sm_(75|80|90))": INDEXED,
    "layers.hidden-small-float64-identity-sm_80": SPILLED,
    "layers.last-small-float64-leaky_relu-squared_error-gradient-sm_": SPILLED,
}
# why less than 70 of 100 instructions of a main loop multiply
MULTIPLIES_LITTLE = {
    "-narrow-float64-": "a thread's 32 products of an index take 6 loads, of two numbers each",
    "weight_gradient-narrow-float32-upstream": "each of the 8 numbers of a thread has a factor, which is loaded, too",
    "(hidden|last|form)-narrow-float32-.*-sm_100": "addresses take some 20 instructions more than on older devices",
    "weight_gradient-small-float64-upstream-sm_100": "addresses take some 40 instructions more than on older devices",
}


class Run(NamedTuple):
    """A kernel and the compute capability that it is compiled for."""

    case: Case
    capability: tuple[int, int]

    def __str__(self) -> str:
        return "{}-sm_{}{}".format(self.case.name, *self.capability)

    @property
    def representative(self) -> bool:
        return self.case in REPRESENTATIVE

    @property
    def slow(self) -> bool:
        quick = self.representative and self.case.real == float32 and self.case.tile in (None, LARGE)
        return not quick or self.capability != (9, 0)


class Findings(NamedTuple):
    """What a run shows: of all instructions their kinds, of the main loop's the names, each with its number."""

    kernel: Kernel
    resources: Resources
    ptx_has_doubles: bool
    kinds: frozenset[str]
    loop: Counter[str]
    multiplied: int
    share: float


EVERY = [Run(case, capability) for case in SPECIALISATIONS for capability in CAPABILITIES]
RUNS = [run for run in EVERY if run.representative or run.capability in ALL_COMPILED]


@cache
def findings(run: Run) -> Findings:
    """Compile once for all tests."""
    kernel = run.case.make()
    code = compiled(kernel, run.capability)
    path = interior(code.blocks) if run.case.tile else []
    return Findings(
        kernel,
        code.resources,
        ".f64" in code.ptx,
        frozenset(instruction.kind for instruction in code.instructions),
        Counter(instruction.name for instruction in path),
        work_of(path).multiplied,
        share(path),
    )


def of_runs(chosen: Callable[[Case], Any], flaws: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Run a test for kernels; those that match one of `flaws` are expected to fail."""

    def marks(run: Run) -> Iterator[Any]:
        if run.slow:
            yield pytest.mark.slow
        for pattern, reason in flaws.items():
            if re.search(pattern, str(run)):
                yield pytest.mark.xfail(strict=True, reason=reason)

    runs = [pytest.param(run, id=str(run), marks=tuple(marks(run))) for run in RUNS if chosen(run.case)]
    return pytest.mark.parametrize("run", runs)


@of_runs(lambda case: True)
def test_as_many_blocks_fit_as_were_meant_to(run: Run) -> None:
    kernel, resources = findings(run).kernel, findings(run).resources
    assert resources.registers <= min(MOST_REGISTERS, REGISTERS // (kernel.threads * kernel.blocks))
    assert resources.shared <= STATIC_SHARED


@of_runs(lambda case: True, LIES_IN_MEMORY)
def test_nothing_of_a_thread_lies_in_memory(run: Run) -> None:
    resources = findings(run).resources
    assert (resources.spilled, resources.stack) == (0, 0)
    assert not findings(run).kinds & LOCAL


@of_runs(lambda case: True)
def test_sums_have_one_order(run: Run) -> None:
    assert not findings(run).kinds & ATOMIC


@of_runs(lambda case: case.single)
def test_single_precision_stays_single(run: Run) -> None:
    assert not findings(run).ptx_has_doubles


@of_runs(lambda case: case.tile)
def test_a_slice_takes_one_barrier_and_wide_loads(run: Run) -> None:
    tile, loop = run.case.tile, findings(run).loop
    assert tile
    slices, rest = divmod(findings(run).multiplied, tile.rows * tile.columns * SLICE)
    assert slices >= 1
    assert rest == 0
    assert sum(loop[name] for name in loop if name.startswith("BAR.")) == slices
    loads = [name for name in loop if name.startswith("LDS")]
    assert tile.run != 4 or all(name.endswith(".128") for name in loads)


@of_runs(lambda case: case.tile, MULTIPLIES_LITTLE)
def test_main_loop_multiplies(run: Run) -> None:
    assert findings(run).share >= 0.7


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


def test_a_constant_in_double_precision_shows_in_the_ptx() -> None:
    def scaled(factor):
        def kernel(numbers, i):
            numbers[i] = numbers[i] * factor

        return compiled(kernel_of(kernel), (9, 0)).ptx

    assert ".f64" in scaled(0.1)
    assert ".f64" not in scaled(float32(0.1))
