"""Times on an NVIDIA GPU, by its own events, and what the GPU can do at most.

A call is timed four ways: with gradients and its value alone, as the GPU sees it, from the end of the call before to
its own end; "host", what the CPU takes to launch a call with gradients; and "graph", such a call replayed from a
captured CUDA graph, which the CPU launches at once. Where "host" is as long as the call, the CPU keeps the GPU waiting.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks import machine, peers
from benchmarks.timing import LEAST_CALLS
from benchmarks.workloads import Case
from mcelbo.gpu import supported_by_driver

MORE = ("host", "graph")
MODES = (*peers.MODES, *MORE)
CALLS = 10  # between two waits for the GPU: few enough for its queue of launches, or the CPU would wait there
WARM = 3  # calls before a capture
SIDE = 8192  # of the matrices that are multiplied
COPIED = 2**28  # bytes: more than caches hold
CAPTION = (
    "on a GPU by CUDA events, float32 products without TF32; host: what the CPU takes to launch it; "
    "graph: replayed from a captured CUDA graph"
)


def device_for(option: str) -> torch.device:
    """Return the device that --device names, the GPU that torch sees for "auto" if there is one."""
    seen = torch.version.cuda is not None and torch.cuda.is_available()
    if option == "cuda" and not seen:
        raise SystemExit("--device: there is no NVIDIA GPU that torch can see")
    return torch.device("cuda", torch.cuda.current_device()) if seen and option != "cpu" else torch.device("cpu")


@contextmanager
def exact_products() -> Iterator[None]:
    """Keep float32 products from rounding their factors to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def visit(call: Callable[[], object], seconds: float, gather: Callable[[Callable[[], object]], list[float]]) -> float:
    """Return the median time of a call, from calls that take `seconds` together; `gather` times some of them."""
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < LEAST_CALLS:
        times += gather(call)
    return statistics.median(times)


def on_device(call: Callable[[], object]) -> list[float]:
    """Return the seconds from the end of each call to that of the next, as the GPU sees them."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(CALLS + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [1e-3 * before.elapsed_time(after) for before, after in pairwise(events)]


def on_host(call: Callable[[], object]) -> list[float]:
    """Return the seconds that the CPU spends in each call, which waits for nothing."""
    torch.cuda.synchronize()
    clock = [time.perf_counter()]
    for _ in range(CALLS):
        call()
        clock.append(time.perf_counter())
    torch.cuda.synchronize()
    return [after - before for before, after in pairwise(clock)]


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Return a call as a graph, captured as torch advises: warmed up on another stream than the current one."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


class GpuRunner:
    """A peer at work on a GPU, timed by the GPU's events; see `peers.Runner`."""

    def __init__(self, name: str, runner: peers.TorchRunner) -> None:
        self.runner = runner
        self.graph: torch.cuda.CUDAGraph | None = None
        self.reason = f"{name} is not captured: torch.compile has a mode of its own for that"
        if name != "compile":
            try:
                self.graph = captured(runner.gradients)
            except Exception as problem:  # whatever it is, the other times are worth having
                self.reason = f"{name} was not captured: {type(problem).__name__}: {str(problem).partition(chr(10))[0]}"

    def time(self, mode: str, seconds: float) -> float:
        """See `peers.Runner`; `mode` is one of `MODES`."""
        if mode == "host":
            return visit(self.runner.gradients, seconds, on_host)
        if mode == "graph":
            assert self.graph is not None
            return visit(self.graph.replay, seconds, on_device)
        return visit(self.runner.value if mode == "value" else self.runner.gradients, seconds, on_device)

    def unavailable(self, mode: str) -> str | None:
        """See `peers.Runner`."""
        return self.reason if mode == "graph" and self.graph is None else None

    def result(self) -> tuple[Tensor, ...]:
        """See `peers.Runner`."""
        return self.runner.result()

    def processes(self) -> list[int]:
        """See `peers.Runner`."""
        return []

    def close(self) -> None:
        """Give the graph's memory back."""
        self.graph = None


def start(name: str, case: Case) -> GpuRunner:
    """Set a peer to work on a case whose tensors are on a GPU."""
    runner = peers.start(name, case)
    assert isinstance(runner, peers.TorchRunner)
    return GpuRunner(name, runner)


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU of a run."""

    name: str
    capability: str
    driver: str  # the CUDA that it supports
    peak: float  # float32 operations per second of a large matrix product without TF32
    bandwidth: float  # bytes per second, read and written, of a large copy
    megahertz: int | None  # of the multiprocessors while they multiplied, where pynvml is installed
    versions: dict[str, str]

    def best(self, again: Gpu) -> Gpu:
        """Return the higher rates of two looks at one GPU."""
        return replace(again, peak=max(self.peak, again.peak), bandwidth=max(self.bandwidth, again.bandwidth))

    def __str__(self) -> str:
        clock = "" if self.megahertz is None else f" at {self.megahertz} MHz"
        return (
            f"{self.name}, compute capability {self.capability}, driver for CUDA {self.driver}: FP32 FMA peak (a large "
            f"matrix product, TF32 off) {self.peak / 1e12:.1f} TFLOP/s{clock}; copies {self.bandwidth / 1e9:.0f} GB/s "
            "(read + written)"
        )


def describe(device: torch.device, repeats: int = 7) -> Gpu:
    """Measure the GPU, whose memory holds 1.3 GB for that."""
    a, b, c = (torch.rand(SIDE, SIDE, device=device) for _ in range(3))  # ones would spare the units their power
    source, target = (torch.ones(COPIED // 4, device=device) for _ in range(2))

    def fastest(call: Callable[[], object]) -> float:
        call()
        return min(seconds for _ in range(repeats) for seconds in on_device(call))

    with exact_products():
        of_product = fastest(lambda: torch.mm(a, b, out=c))
        for _ in range(CALLS):
            torch.mm(a, b, out=c)
        megahertz = clock_rate(device)
        torch.cuda.synchronize()
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return Gpu(
        torch.cuda.get_device_name(device),
        capability,
        supported_by_driver() or "unknown",
        2 * SIDE**3 / of_product,
        2 * COPIED / fastest(lambda: target.copy_(source)),
        megahertz,
        machine.versions() | {"CUDA": str(torch.version.cuda)},
    )


def clock_rate(device: torch.device) -> int | None:
    """Return the megahertz at which the multiprocessors run, None where nothing here can tell."""
    with suppress(ImportError, RuntimeError):  # without pynvml, or without what it asks
        return torch.cuda.clock_rate(device)
    return None
