"""Time against error: what a given standard error of the estimate costs with each peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.report import Row
from benchmarks.workloads import Workload, build

SAMPLES = (16, 128, 1024, 8192, 65536)
PILOT = 4096  # samples that the variance is estimated from, to about 2%
LARGEST_BATCH = 4


def relative_error(workload: Workload) -> float:
    """Return the standard error of the mean loss with ONE sample per datum, over that loss.

    The error with n independent samples is this over sqrt(n).
    """
    pilot = build(replace(workload, samples=PILOT), torch.float64)
    with torch.no_grad():
        y = peers.decode(pilot, pilot.inputs, inplace=True)
        errors = (y - pilot.x[:, None]).square().mean(dim=2)  # (B, n)
    batch = errors.shape[0]
    return float((errors.var(dim=1).sum().sqrt() / batch) / errors.mean())


def sweep(
    workload: Workload, names: Sequence[str], seconds: float, jax_python: str | None, done: Callable[[], object]
) -> list[Row]:
    """Return one row per number of samples and peer: milliseconds with gradients, and the relative standard error."""
    workload = replace(workload, batch=min(workload.batch, LARGEST_BATCH))
    single = relative_error(workload)
    rows: list[Row] = []
    for samples in SAMPLES:
        case = build(replace(workload, samples=samples))
        for name in names:
            with closing(peers.start(name, case, jax_python)) as runner:
                elapsed = runner.time("gradients", seconds)
            rows.append(
                {
                    "workload": workload.name,
                    "peer": name,
                    "n": samples,
                    "gradients ms": 1e3 * elapsed,
                    "standard error %": 100 * single / samples**0.5,
                }
            )
            done()
    return rows


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw time against error, a line per workload and peer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for workload, peer in dict.fromkeys((row["workload"], row["peer"]) for row in rows):
        line = [row for row in rows if (row["workload"], row["peer"]) == (workload, peer)]
        errors, times = ([row[key] for row in line] for key in ("standard error %", "gradients ms"))
        axes.loglog(errors, times, "o-", label=f"{workload}, {peer}")
    axes.set_xlabel("relative standard error of the loss, %")
    axes.set_ylabel("value and gradients, milliseconds a call")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
