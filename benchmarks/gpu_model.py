"""`python -m benchmarks.gpu_model [workload ...]`: what the CUDA kernels' model says of the workloads.

Prediction, unmeasured: no device takes part. The calls are those for value and gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from benchmarks.report import Row, show
from benchmarks.workloads import WORKLOADS, Workload
from mcelbo_kernels.cuda import choice
from mcelbo_kernels.cuda.layout import Kind
from mcelbo_kernels.cuda.model import A100, H100, Gpu, Launch, launches, occupancy, predict
from mcelbo_kernels.problem import Activation, Need

GPUS = {"H100": H100, "A100": A100}
WIDTH = 160  # of the tables, which a terminal of 80 columns would cut off


def kind_of(workload: Workload) -> Kind:
    """Return the call for value and gradients of mu, logvar and all parameters."""
    depth = len(workload.widths) - 1
    return Kind(
        np.dtype(np.float32),
        workload.batch,
        workload.samples,
        workload.widths,
        (*[Activation("relu")] * (depth - 1), Activation(workload.output)),
        cell="squared_error",
        sampler="iid",
        weights=0,
        need=Need(False, False, True, True, ((True, True),) * depth),
        upstream=False,
        keep=False,
    )


def algorithm_of(workload: Workload) -> str:
    """Return the algorithm that a call takes by itself."""
    pays = choice.pays(workload.batch, workload.samples, workload.widths[-2], workload.pixels)
    return "gram" if workload.output == "identity" and pays else "grid"


def call_of(workload: Workload) -> list[Launch]:
    """Return the launches of value and gradients."""
    return launches(kind_of(workload), algorithm=algorithm_of(workload))


def row(launch: Launch) -> Row:
    """Return what is known of a launch, and predicted."""
    found: Row = {
        "launch": launch.label,
        "blocks": f"{launch.blocks[0]} x {launch.blocks[1]}",
        "threads": launch.threads,
        "MB": (launch.read + launch.written) / 1e6,
        "distinct MB": (launch.given + launch.kept) / 1e6,
        "MFLOP": 2 * launch.products / 1e6,
    }
    for name, gpu in GPUS.items():
        seconds, bound = predict(launch, gpu)
        held, limit = occupancy(launch, gpu)
        found |= {f"{name} holds": f"{held}, {limit}", f"{name} bound": bound, f"{name} us": 1e6 * seconds}
    return found


def total(rows: Sequence[Row]) -> Row:
    """Return the sums of a call's rows."""
    return {name: sum(row[name] for row in rows) for name in ("MB", "MFLOP", *(f"{name} us" for name in GPUS))}


def share_of_peak(gpu: Gpu, call: Sequence[Launch]) -> float:
    """Return the predicted rate of a call's multiply-adds, in percent of what the device can do."""
    operations = 2 * sum(launch.products for launch in call)
    return 100 * operations / (gpu.peak * sum(predict(launch, gpu).seconds for launch in call))


def main(names: Sequence[str] | None = None, console: Console | None = None) -> None:
    """Print a table for each workload, and one of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_model", description=__doc__)
    parser.add_argument("workloads", nargs="*", help="by default all")
    chosen = parser.parse_args(names).workloads
    console, sums = console or Console(width=WIDTH), list[Row]()
    for workload in WORKLOADS:
        if chosen and workload.name not in chosen:
            continue
        call = call_of(workload)
        rows = [row(launch) for launch in call]
        show(
            f"{workload.name} ({workload.shape}) by {algorithm_of(workload)}: prediction, unmeasured",
            [*rows, {"launch": "sum"} | total(rows)],
            console,
        )
        peaks = {f"{name} %peak": share_of_peak(gpu, call) for name, gpu in GPUS.items()}
        sums.append({"workload": workload.name, "launches": len(call), **total(rows), **peaks})
    show("All launches of a call: prediction, unmeasured", sums, console)


if __name__ == "__main__":
    main()
