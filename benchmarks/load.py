"""Was the machine ours? Processor time that other processes used while we measured."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import psutil


class Reading(NamedTuple):
    """Clocks at one moment, in seconds since any fixed start."""

    wall: float
    busy: float  # of all cores together, time stolen by a hypervisor included
    own: float  # of this process and its workers


def read(workers: Sequence[int] = ()) -> Reading:
    """Read the clocks; `workers` are process ids that count as our own."""
    system = psutil.cpu_times()
    # guest times are counted in user time already; waiting for a disk is idling
    idle = sum(getattr(system, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))
    own = 0.0
    for process in (os.getpid(), *workers):
        used = psutil.Process(process).cpu_times()
        own += used.user + used.system
    return Reading(time.perf_counter(), sum(system) - idle, own)


def others(before: Reading, after: Reading, cores: int) -> float:
    """Return the share of the machine's `cores` that other processes used between two readings.

    Infinite where the system's counters missed what we ourselves used, as in some sandboxes: a machine
    whose load cannot be read is not known to be quiet.
    """
    wall, busy, own = (b - a for a, b in zip(before, after, strict=True))
    if wall <= 0 or busy < own / 2:
        return math.inf
    return max(0.0, busy - own) / (wall * cores)


def cores() -> int:
    """Return the machine's logical cores, which `psutil.cpu_times` sums over."""
    return psutil.cpu_count() or 1


def physical_cores() -> int:
    """Return the physical cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores()
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))
