"""Measurements as terminal tables, CSV, JSON and plots."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import gpu, peers
from benchmarks.gpu import Gpu
from benchmarks.machine import Machine
from benchmarks.measure import Measurement

Row = dict[str, Any]


def rows(measurement: Measurement, machine: Machine | Gpu) -> list[Row]:
    """Return one row per peer; times in seconds, `ratio` how many times mcelbo's time."""
    workload = measurement.workload
    found = []
    for peer in measurement.names:
        seconds = measurement.median("gradients", peer)
        row: Row = {"workload": workload.name, "peer": peer, "gradients": seconds}
        row["gradients_spread"] = measurement.spread("gradients", peer)
        row["value"] = measurement.median("value", peer)
        row["value_spread"] = measurement.spread("value", peer)
        if peers.OWN in measurement.names:
            row |= {f"{mode}_ratio": measurement.ratio(mode, peer) for mode in peers.MODES}
        for mode in gpu.MORE if measurement.on_gpu else ():
            row[mode] = measurement.median(mode, peer) if measurement.timed(mode, peer) else "-"
        row["cells_per_second"] = workload.cells / seconds
        row["share_of_peak"] = workload.operations / seconds / machine.peak
        row |= {"rounds": len(measurement.rounds), "discarded": measurement.discarded, "noisy": measurement.noisy}
        found.append(row)
    return found


def readable(value: object) -> str:
    """Return a cell's text: three digits are as many as a time deserves."""
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


def show(title: str, table_rows: Sequence[Row], console: Console | None = None) -> None:
    """Print rows as a table whose columns are their keys."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = list(dict.fromkeys(key for row in table_rows for key in row))
    for column in columns:
        text = isinstance(table_rows[0].get(column), str)
        table.add_column(column, justify="left" if text else "right", no_wrap=True)
    for row in table_rows:
        table.add_row(*(readable(row.get(column, "")) for column in columns))
    (console or Console()).print(table)


def milliseconds(seconds: object) -> object:
    """Return a time in milliseconds, or what stands for one that is missing."""
    return 1e3 * seconds if isinstance(seconds, float) else seconds


def times_table(measurements: Sequence[Measurement], machine: Machine | Gpu) -> list[Row]:
    """Return every peer's times in readable units."""
    return [
        {
            "workload": row["workload"],
            "peer": row["peer"],
            "grad ms": 1e3 * row["gradients"],
            "±%": 100 * row["gradients_spread"],
            "x": row.get("gradients_ratio", ""),
            "value ms": 1e3 * row["value"],
            "x ": row.get("value_ratio", ""),
            **{f"{mode} ms": milliseconds(row[mode]) for mode in gpu.MORE if mode in row},
            "Gcell/s": row["cells_per_second"] / 1e9,
            "%peak": 100 * row["share_of_peak"],
        }
        for measurement in measurements
        for row in rows(measurement, machine)
    ]


def targets_table(measurements: Sequence[Measurement]) -> list[Row]:
    """Return mcelbo against the fastest peer, and on the CPU against what it is meant to reach there."""
    found = []
    for measurement in measurements:
        workload, rival = measurement.workload, measurement.fastest("gradients")
        if rival is None or peers.OWN not in measurement.names:
            continue
        ratio = measurement.ratio("gradients", rival)
        row: Row = {"workload": workload.name, "fastest peer": rival, "speed-up": ratio}
        if not measurement.on_gpu:
            row |= {"target": workload.target, "reached": "yes" if ratio >= workload.target else "no"}
            row |= {"discarded": measurement.discarded, "load": "NOISY" if measurement.noisy else "quiet"}
        found.append(row)
    return found


def trips(seconds: Sequence[float]) -> str:
    """Return in words how far apart cores were seen to be."""
    return f"a cache line to another core and back {1e9 * min(seconds):.0f} to {1e9 * max(seconds):.0f} ns"


def caption(measurements: Sequence[Measurement]) -> str:
    """Return what a table of times shows, how they were taken, and why some are missing."""
    taken = f"; {gpu.CAPTION}" if any(measurement.on_gpu for measurement in measurements) else ""
    shown = f"Milliseconds a call: with gradients, and the value alone; x: times mcelbo's{taken}"
    missing = dict.fromkeys(f"-: {reason}" for measurement in measurements for reason in measurement.missing)
    return "\n".join([shown, *missing])


def describe(machine: Machine | Gpu) -> str:
    """Return the machine in two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    if isinstance(machine, Gpu):
        return f"{machine}\n{versions}"
    return (
        f"{machine.processor}, {machine.threads} threads: FMA peak {machine.core_peak / 1e9:.0f} GFLOP/s one core, "
        f"{machine.peak / 1e9:.0f} together; copies {machine.bandwidth / 1e9:.1f} GB/s (read + written); "
        f"{trips(machine.round_trips)}\n{versions}"
    )


def save(folder: Path, name: str, table_rows: Sequence[Row], **more: Any) -> None:
    """Write rows to `name`.csv, and with everything else that is known to `name`.json."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in table_rows for key in row))
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(table_rows)
    (folder / f"{name}.json").write_text(json.dumps({"rows": list(table_rows), **more}, indent=1) + "\n")


def plot(path: Path, measurements: Sequence[Measurement]) -> None:
    """Draw each peer's time with gradients by workload, and the target as a mark on the fastest peer's scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.9 * len(measurements)), layout="constrained")
    axes = figure.add_subplot()
    names = [name for name in peers.NAMES if any(name in measurement.names for measurement in measurements)]
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        places = [i for i, measurement in enumerate(measurements) if name in measurement.names]
        medians = [1e3 * measurements[i].median("gradients", name) for i in places]
        bars = axes.barh([i + index * height for i in places], medians, height, label=name)
        axes.bar_label(bars, fmt="{:.3g}", padding=2, fontsize="small")
    for i, measurement in enumerate(measurements):
        rival = measurement.fastest("gradients")
        if rival is not None and not measurement.on_gpu:
            goal = 1e3 * measurement.median("gradients", rival) / measurement.workload.target
            axes.plot([goal] * 2, [i - height / 2, i + 0.8 - height / 2], "k:", label=None if i else "target")
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(measurements))])
    axes.set_yticklabels([m.workload.name + " (noisy)" * m.noisy for m in measurements])
    axes.invert_yaxis()
    axes.set_xlabel("value and gradients, milliseconds a call (median)")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def save_run(folder: Path, measurements: Sequence[Measurement], machine: Machine | Gpu) -> None:
    """Write everything that a run measured, each round included; what a GPU did goes beside what the CPU did."""
    name = "speed-cuda" if isinstance(machine, Gpu) else "speed"
    rounds = {
        measurement.workload.name: [
            {"load": round.load, "seconds": {" ".join(key): seconds for key, seconds in round.seconds.items()}}
            for round in measurement.rounds
        ]
        for measurement in measurements
    }
    flat = [row for measurement in measurements for row in rows(measurement, machine)]
    save(folder, name, flat, machine=asdict(machine), rounds=rounds)
    plot(folder / f"{name}.png", measurements)
