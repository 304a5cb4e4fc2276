"""A `torch.cuda` that is made up, for what only launches, waits and looks at clocks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch


@dataclass
class Cuda:
    """A GPU that computes while the CPU waits, by a clock of its own."""

    clock: Callable[[], float] = time.perf_counter
    waits: int = 0
    capturing: bool = False
    capture_fails: bool = False

    def synchronize(self) -> None:
        """Count how often the CPU waits; a capture forbids it."""
        assert not self.capturing
        self.waits += 1

    @contextlib.contextmanager
    def graph(self, graph: Graph) -> Iterator[None]:
        """Capture what runs within."""
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False
        if self.capture_fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand more that nobody reads")


class Graph:
    """A captured graph."""

    replays = 0

    def replay(self) -> None:
        """Count the replays."""
        self.replays += 1


class Stream:
    """A stream, which waits for none."""

    def wait_stream(self, other: Stream) -> None:
        """Wait for nothing."""


def install(patch: pytest.MonkeyPatch) -> Cuda:
    """Let torch see a GPU."""
    found = Cuda()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = found.clock()

        def elapsed_time(self, later: Any) -> float:
            return float(1e3 * (later.at - self.at))

    stand_ins: dict[str, Any] = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "synchronize": found.synchronize,
        "graph": found.graph,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "current_device": lambda: 0,
        "is_available": lambda: True,
        "get_device_name": lambda device: "Some GPU",
        "get_device_capability": lambda device: (9, 0),
        "clock_rate": lambda device: 1980,
    }
    for name, value in stand_ins.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch.version, "cuda", "12.8")
    return found


def ticking(cuda: Cuda, seconds: Iterator[float]) -> Callable[[], None]:
    """Return a call that takes the GPU the next of some times."""
    now = 0.0

    def call() -> None:
        nonlocal now
        now += next(seconds)

    cuda.clock = lambda: now
    return call
