"""mcelbo's kernels one by one on a GPU: their own times by torch's profiler, beside what the model predicts of them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import peers
from benchmarks.gpu_model import GPUS, call_of
from benchmarks.report import Row
from benchmarks.workloads import Workload, build
from mcelbo_kernels.cuda.model import H200, Gpu, Launch, predict

CALLS, WARM = 20, 3
MODELLED: dict[str, Gpu] = {"H200": H200, **GPUS}
KERNEL = re.compile(r"mcelbo_kernels(?:::\w+)*::(\w+)::_3clocals")


class Event(NamedTuple):
    """A kernel that ran: its full name, when it began, and how long it took, both in microseconds."""

    name: str
    begin: float
    length: float


def events_of(call: Callable[[], object], calls: int) -> list[Event]:
    """Return all kernels of so many calls."""
    for _ in range(WARM):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    found = (event for event in profiler.events() or [] if event.device_type.name == "CUDA")
    return [Event(event.name, event.time_range.start, event.time_range.elapsed_us()) for event in found]


def of_a_call(events: Iterable[Event], calls: int) -> list[tuple[str, float]]:
    """Return each of mcelbo's launches in a call by its kernel's first name, with its median length.

    Raises
    ------
    ValueError
        If the calls did not launch the same kernels.
    """
    named = ((KERNEL.search(event.name), event) for event in sorted(events, key=lambda event: event.begin))
    ordered = [(found.group(1), event.length) for found, event in named if found]
    labels, lengths = [label for label, _ in ordered], [length for _, length in ordered]
    each = len(ordered) // calls
    if labels != labels[:each] * calls:
        raise ValueError(f"{calls} calls launched {len(ordered)} kernels, not the same in each call")
    return [(label, statistics.median(lengths[at::each])) for at, label in enumerate(labels[:each])]


def beside(measured: Sequence[tuple[str, float]], modelled: Sequence[Launch]) -> list[Row]:
    """Return what the launches of a call took beside what the model says, in microseconds, and the sums.

    A prediction holds the launch's own latency as well, which a measured length does not.
    """
    if [label for label, _ in measured] != [launch.label for launch in modelled]:
        raise ValueError(f"the model is of {[launch.label for launch in modelled]}, and {measured} was launched")
    rows: list[Row] = [
        {"launch": label, "blocks": f"{launch.blocks[0]} x {launch.blocks[1]}", "measured us": length}
        | {f"{name} us": 1e6 * predict(launch, gpu).seconds for name, gpu in MODELLED.items()}
        for (label, length), launch in zip(measured, modelled, strict=True)
    ]
    times = ("measured us", *[f"{name} us" for name in MODELLED])
    return [*rows, {"launch": "sum"} | {name: sum(row[name] for row in rows) for name in times}]


def table(workload: Workload, device: torch.device) -> list[Row]:
    """Measure the launches of a workload, and return them beside the model's."""
    runner = peers.start(peers.OWN, build(workload, device=device))
    assert isinstance(runner, peers.TorchRunner)
    return beside(of_a_call(events_of(runner.gradients, CALLS), CALLS), call_of(workload))
