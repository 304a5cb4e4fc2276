"""What only a fresh process can show: the memory that one call adds, and how long the first call takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import Row
from benchmarks.workloads import Workload

ROOT = Path(__file__).resolve().parents[1]
CACHES = ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
FEW, MANY = 16, 100_000
LARGEST_BATCH = 4  # 100,000 samples of a full batch of an MLP would take minutes and show the same
MEGABYTE = 2**20


def probe(what: str, peer: str, workload: Workload, threads: int, cache: Path | None = None) -> Mapping[str, Any]:
    """Run `benchmarks.probe` in a fresh process, its compilers' caches in `cache`."""
    request = {"what": what, "peer": peer, "workload": asdict(workload), "threads": threads}
    environment = dict(os.environ)
    if cache is not None:
        environment |= {name: str(cache / name.lower()) for name in CACHES}
    command = [sys.executable, "-m", "benchmarks.probe", json.dumps(request)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def fits(workload: Workload) -> bool:
    """Return whether a peer that stores every sample's pixels, a few times over, stays within half of free memory."""
    return bool(4 * 4 * workload.cells < psutil.virtual_memory().available / 2)


def call_memory(
    workloads: Sequence[Workload], peers: Sequence[str], threads: int, done: Callable[[], object]
) -> list[Row]:
    """Return one row per workload and peer: megabytes that a call adds with few and with many samples, and how read."""
    rows = []
    for workload in workloads:
        few = replace(workload, batch=min(workload.batch, LARGEST_BATCH), samples=FEW)
        many = replace(few, samples=MANY)
        for peer in peers:
            read = ""
            row: Row = {"workload": workload.name, "batch": few.batch, "peer": peer}
            for size in (few, many):
                column = f"MB at n = {size.samples:,}"
                if peer == "mcelbo" or fits(size):
                    answer = probe("memory", peer, size, threads)
                    row[column], read = answer["bytes"] / MEGABYTE, answer["read"]
                else:
                    row[column] = f"needs over {4 * size.cells / MEGABYTE:,.0f}"
            rows.append(row | {"read": read})
            done()
    return rows


def first_calls(
    workloads: Sequence[Workload], peers: Sequence[str], threads: int, done: Callable[[], object]
) -> list[Row]:
    """Return one row per workload and peer: seconds of imports and first calls, compilers' caches empty and filled."""
    rows = []
    for workload in workloads:
        for peer in peers:
            with tempfile.TemporaryDirectory() as folder:
                cold = probe("first-call", peer, workload, threads, Path(folder))
                warm = probe("first-call", peer, workload, threads, Path(folder))
            rows.append(
                {
                    "workload": workload.name,
                    "peer": peer,
                    "imports s": warm["imports"],
                    "first call cold s": cold["first"],
                    "first call warm s": warm["first"],
                    "second call s": warm["second"],
                }
            )
            done()
    return rows
