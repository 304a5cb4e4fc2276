"""What the machine can do at most: fused multiply-adds, copies, messages between cores, measured; what it is called."""

from __future__ import annotations

import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from benchmarks import load
from mcelbo_kernels.cpu.board import atomic_load, atomic_store
from mcelbo_kernels.cpu.shape import host_shape

PACKAGES = ("mcelbo", "torch", "numba", "llvmlite", "numpy")


def vector_shape() -> tuple[int, int]:
    """Return float32 lanes of a register, and chains enough to hide an FMA's latency in half of the registers."""
    lanes = host_shape("float32").lanes
    return lanes, 12 if lanes > 4 else 24


LANES, CHAINS = vector_shape()
SETTLE = 0.02  # seconds after which torch's threads have stopped looking out for work, each on its core


@intrinsic
def _chains(typing_context: Any, steps: Any) -> Any:
    """Run CHAINS independent chains of a <- a * 0.5 + 1, `steps` long, and return the sum of all lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), LANES)
        half, one = (ir.Constant(vector, [value] * LANES) for value in (0.5, 1.0))
        operation = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, operation, f"llvm.fma.v{LANES}f32")
        starts = [ir.Constant(vector, [float(i)] * LANES) for i in range(CHAINS)]
        chains = [cgutils.alloca_once_value(builder, start) for start in starts]
        with cgutils.for_range(builder, arguments[0]):
            for chain in chains:
                builder.store(builder.call(fma, [builder.load(chain), half, one]), chain)
        total = ir.Constant(vector, [0.0] * LANES)
        for chain in chains:
            total = builder.fadd(total, builder.load(chain))
        lanes = [builder.extract_element(total, ir.Constant(ir.IntType(32), i)) for i in range(LANES)]
        result = lanes[0]
        for lane in lanes[1:]:
            result = builder.fadd(result, lane)
        return result

    return types.float32(types.int64), generate


@njit(types.float32(types.int64), nogil=True)
def multiply_add(steps: int) -> float:
    """Run `steps` FMAs in each of CHAINS vector registers."""
    total: float = _chains(steps)
    return total


def fma_peak(threads: int = 1, steps: int = 4_000_000, repeats: int = 7) -> float:
    """Return the most float32 operations per second that `threads` Python threads reach together."""
    operations = 2 * LANES * CHAINS * steps * threads
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(multiply_add, [steps] * threads))
            best = max(best, operations / (time.perf_counter() - start))
    return best


def copy_bandwidth(elements: int = 2**25, repeats: int = 7) -> float:
    """Return the most bytes per second, read and written, of a copy by torch's threads."""
    source, target = torch.ones(elements), torch.ones(elements)

    def seconds() -> float:
        start = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - start

    return 2 * source.nbytes / min(seconds() for _ in range(repeats))


@njit(nogil=True)
def pass_on(board: Any, parity: int, start: int, stop: int) -> None:
    """Wait for every second number from `start` to `stop` on the board, and write the next."""
    for number in range(start + parity, stop, 2):
        while atomic_load(board, 0) != number:
            pass
        atomic_store(board, 0, number + 1)


def round_trip(trips: int = 5000) -> float:
    """Return the seconds in which a cache line goes to another core and back; 0 where there is no other.

    Those of a virtual machine may be near each other at one time and far at another: what threads hand to each other
    then takes ten times as long, while nothing that a core does on its own does.
    """
    board = np.zeros(8, np.int64)
    pass_on(board, 0, 0, 0)  # compiles
    if load.physical_cores() < 2:
        return 0.0
    time.sleep(SETTLE)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(pass_on, board, 1, 0, 2 * (trips + 1))
        pass_on(board, 0, 0, 2)  # until the other has started
        start = time.perf_counter()
        pass_on(board, 0, 2, 2 * (trips + 1))
        elapsed = time.perf_counter() - start
        other.result()
    return elapsed / trips


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that take part."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of a run."""

    processor: str
    threads: int
    core_peak: float  # float32 operations per second of one core
    peak: float  # of `threads` threads
    bandwidth: float  # bytes per second
    round_trips: tuple[float, ...]  # seconds, at every look
    versions: dict[str, str]

    def best(self, again: Machine) -> Machine:
        """Return the higher rates of two looks at one machine: what it was once seen to do, it can."""
        rates = {name: max(getattr(self, name), getattr(again, name)) for name in ("core_peak", "peak", "bandwidth")}
        return replace(self, round_trips=self.round_trips + again.round_trips, **rates)


def describe(threads: int, repeats: int = 7) -> Machine:
    """Measure the machine."""
    return Machine(
        processor(),
        threads,
        fma_peak(1, repeats=repeats),
        fma_peak(threads, repeats=repeats),
        copy_bandwidth(repeats=repeats),
        (statistics.median(round_trip() for _ in range(repeats)),),
        versions(),
    )
