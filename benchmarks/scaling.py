"""How the time of value and gradients grows with every size and with threads; its memory; and the noise alone.

One size at a time is varied about `BASE`, with sigmoid output (the grid) and with identity output, for which mcelbo
takes the cheaper of quadratic form ("gram") and grid. Sizes span three decades, hidden widths two and a half: ten
thousand would take as long as everything else together. A slope is that of logarithms over the upper decade. It is to
be 1 on the grid; the quadratic form's is 2 in the width that the last layer reads, and less than 1 in the pixels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import mcelbo
from benchmarks import load, machine, measure, memory, peers, timing
from benchmarks.measure import Measurement, Settings
from benchmarks.report import Row
from benchmarks.workloads import Workload, build

SETTINGS = Settings(rounds=7, seconds=0.03)
BASE = Workload("base", 8, 32, 784, 100, "sigmoid", 1.0)
OUTPUTS = ("sigmoid", "identity")
FIELDS = {"n": "samples", "B": "batch", "m": "pixels", "H": "hidden", "d": "latent"}
SAMPLES_OF_THREADS = 1000  # a call of milliseconds, of which waking others is a small part
LATENTS = (1, 2, 32)  # of noise
ROUND_TRIP = ("a cache line", "to another core and back")
SOURCES = ("mcelbo iid", "mcelbo sobol", "torch.randn")


class Spans(NamedTuple):
    """How far to go."""

    sizes: Mapping[str, tuple[int, int]]  # from and to, by axis
    memory: tuple[int, ...]  # samples of one datum
    normals: int  # of a call: few enough for the cache, or fetching pages of memory would be timed as well


FULL = Spans(
    {"n": (10, 10_000), "B": (1, 1000), "m": (10, 10_000), "H": (10, 3000), "d": (1, 1000)},
    (16, 1000, 100_000),
    1 << 17,
)
QUICK = Spans({axis: (low, 10 * low) for axis, (low, _) in FULL.sizes.items()}, (16,), 1 << 10)


@dataclass(frozen=True, slots=True)
class Point:
    """One problem of a curve."""

    axis: str
    size: int
    threads: int
    workload: Workload

    @property
    def key(self) -> tuple[str, str]:
        """What its times are entered under."""
        return f"{self.axis} {self.workload.output}", str(self.size)


class Scaling(NamedTuple):
    """All that a run finds out, as tables."""

    points: list[Row]
    slopes: list[Row]
    memory: list[Row]
    noise: list[Row]
    peaks: dict[int, float]  # operations per second of so many threads
    round_trips: list[float]  # of every round, in seconds
    noisy: bool

    @property
    def tables(self) -> dict[str, list[Row]]:
        """The tables by their names."""
        others = {"slopes": self.slopes, "memory": self.memory, "noise": self.noise}
        return {"scaling": self.points} | {f"scaling-{name}": rows for name, rows in others.items()}


def steps(low: int, high: int) -> list[int]:
    """Return `low` times 1, 3, 10, 30 and so on, up to `high`."""
    thirds = (low * factor * 10**power for power in range(len(str(high))) for factor in (1, 3))
    return [size for size in thirds if size <= high]


def points(spans: Spans, threads: int) -> list[Point]:
    """Return every problem to time."""
    found = []
    for output in OUTPUTS:
        base = replace(BASE, output=output)
        for axis, field in FIELDS.items():
            sizes = steps(*spans.sizes[axis])
            found += [Point(axis, size, threads, replace(base, **{field: size})) for size in sizes]
        counts = sorted({threads, *(1 << power for power in range(threads.bit_length()))})
        many = replace(base, samples=SAMPLES_OF_THREADS)
        found += [Point("threads", count, count, many) for count in counts]
    return found


def draw(source: str, latent: int, normals: int) -> object:
    """Draw so many float32 normals."""
    shape = (1, normals // latent, latent)
    if source == "torch.randn":
        return torch.randn(shape)
    return mcelbo.noise(1, *shape, sampler=source.split()[1], dtype=torch.float32)


def on_threads(threads: int, visit: Callable[[float], float], seconds: float) -> float:
    """Visit with so many of torch's threads, which are mcelbo's."""
    torch.set_num_threads(threads)
    return visit(seconds)


def visits(problems: Sequence[Point], normals: int) -> dict[tuple[str, str], Callable[[float], float]]:
    """Return what a round consists of."""
    found: dict[tuple[str, str], Callable[[float], float]] = {ROUND_TRIP: lambda _: machine.round_trip()}
    for point in problems:
        runner = peers.start(peers.OWN, build(point.workload))
        found[point.key] = partial(on_threads, point.threads, partial(runner.time, "gradients"))
    for source in SOURCES:
        for latent in LATENTS:
            call = partial(draw, source, latent, normals)
            found[source, str(latent)] = partial(on_threads, 1, partial(timing.visit, call))
    return found


def point_row(point: Point, times: Measurement, peak: float) -> Row:
    """Return what is known of a point."""
    workload, seconds = point.workload, times.median(*point.key)
    case = build(workload)
    return {
        "axis": point.axis,
        "output": workload.output,
        "size": point.size,
        "path": mcelbo.explain(case.decoder, case.x, workload.samples).path,
        "ms": 1e3 * seconds,
        "±%": 100 * times.spread(*point.key),
        "GFLOP": workload.operations / 1e9,
        "%peak": 100 * workload.operations / seconds / peak,
    }


def curves(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the points of every axis and output."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["axis"], row["output"]), []).append(row)
    return found


def slope_row(axis: str, output: str, curve: Sequence[Row]) -> Row:
    """Return the growth over a curve's upper decade; of threads, how many times faster than one all of them are."""
    last = curve[-1]
    if axis == "threads":
        return {"axis": axis, "output": output, "from": 1, "to": last["size"], "speed-up": curve[0]["ms"] / last["ms"]}
    upper = [row for row in curve if 10 * row["size"] >= last["size"]]
    logarithms = ([math.log(row[key]) for row in upper] for key in ("size", "ms"))
    slope = statistics.linear_regression(*logarithms).slope
    return {"axis": axis, "output": output, "from": upper[0]["size"], "to": last["size"], "slope": slope}


def memory_rows(samples: Sequence[int], threads: int) -> list[Row]:
    """Return what a call adds to a fresh process, for one datum with more and more samples."""
    rows = []
    for output in OUTPUTS:
        for n in samples:
            answer = memory.probe("memory", peers.OWN, replace(BASE, batch=1, samples=n, output=output), threads)
            rows.append({"output": output, "n": n, "MB": answer["bytes"] / memory.MEGABYTE, "read": answer["read"]})
    return rows


def noise_rows(times: Measurement, normals: int) -> list[Row]:
    """Return what one normal costs one core."""
    return [
        {"noise": source, "d": latent, "ns a normal": 1e9 * times.median(source, str(latent)) / normals}
        for source in SOURCES
        for latent in LATENTS
    ]


def sweep(settings: Settings, spans: Spans, threads: int, progress: Callable[[], object]) -> Scaling:
    """Time all points in turn, round by round; `threads` is the most that are used."""
    problems = points(spans, threads)
    used = {point.threads for point in problems}
    before = {count: machine.fma_peak(count) for count in used}
    calls = visits(problems, spans.normals)
    for visit in calls.values():
        visit(0.0)  # compiles
    rounds = measure.interleave(calls, settings, load.read, load.cores(), progress)
    kept, noisy = measure.keep(rounds, settings)
    times = Measurement(BASE, (peers.OWN,), kept, len(rounds) - len(kept), noisy)
    # what the machine was once seen to do, it can
    peaks = {count: max(before[count], machine.fma_peak(count)) for count in used}
    rows = [point_row(point, times, peaks[point.threads]) for point in problems]
    slopes = [slope_row(*key, curve) for key, curve in curves(rows).items()]
    added, noise = memory_rows(spans.memory, threads), noise_rows(times, spans.normals)
    return Scaling(rows, slopes, added, noise, peaks, times.seconds(*ROUND_TRIP), noisy)


def grouped(rows: Sequence[Row], names: tuple[str, ...], x: str, y: str) -> dict[str, list[tuple[float, float]]]:
    """Return the pairs (x, y) of rows by what they are called."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(", ".join(row[name] for name in names), []).append((row[x], row[y]))
    return lines


def plot(path: Path, found: Scaling) -> None:
    """Draw a panel for each size, and for threads, share of peak, memory and noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 10), layout="constrained")
    panels = iter(figure.subplots(3, 3).flat)

    def panel(x: str, y: str, lines: Mapping[str, Sequence[tuple[float, float]]], style: str = "o-") -> Any:
        axes = next(panels)
        for label, pairs in lines.items():
            axes.loglog(*zip(*pairs, strict=True), style, label=label, markersize=4)
        axes.set(xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        return axes

    slopes = {(row["axis"], row["output"]): row.get("slope") for row in found.slopes}
    for axis in FIELDS:
        lines = grouped([row for row in found.points if row["axis"] == axis], ("output",), "size", "ms")
        named = {f"{output}, slope {slopes[axis, output]:.2f}": pairs for output, pairs in lines.items()}
        panel(axis, "value and gradients, ms a call", named)
    threads = grouped([row for row in found.points if row["axis"] == "threads"], ("output",), "size", "ms")
    faster = {output: [(count, pairs[0][1] / ms) for count, ms in pairs] for output, pairs in threads.items()}
    faster["ideal"] = [(count, count) for count, _ in faster["sigmoid"]]
    panel("threads", "times faster than one", faster).set(xscale="linear", yscale="linear")
    shares = grouped(found.points, ("output", "path"), "GFLOP", "%peak")
    panel("GFLOP a call, of the direct sum", "% of FMA peak", shares, ".")
    panel("n, one datum", "MB that a call adds", grouped(found.memory, ("output",), "n", "MB")).set_yscale("linear")
    noise = panel("d", "noise, ns a normal, one core", grouped(found.noise, ("noise",), "d", "ns a normal"))
    noise.set(yscale="linear", ylim=(0, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
