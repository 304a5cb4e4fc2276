"""The subjects that can be measured, from what the command line asks for to tables and files."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks import error, gpu, machine, measure, memory, peers, report, scaling, sobol
from benchmarks.measure import Settings
from benchmarks.report import Row
from benchmarks.workloads import CPU, Workload


class Task(NamedTuple):
    """What a subject is asked for."""

    arguments: argparse.Namespace
    workloads: Sequence[Workload]
    peers: Sequence[str]
    console: Console
    device: torch.device = CPU

    @property
    def output(self) -> Path:
        """Where results go."""
        folder: Path = self.arguments.output
        return folder

    def settings(self, default: Settings) -> Settings:
        """Return how long to look, where the command line does not say otherwise."""
        if self.arguments.quick:
            return measure.QUICK
        asked = {name: getattr(self.arguments, name) for name in ("rounds", "seconds")}
        return replace(default, **{name: value for name, value in asked.items() if value is not None})

    def progress(self, cases: int) -> tqdm[None]:
        """Return a progress bar of so many cases, which is gone once they are done."""
        return tqdm(total=cases, unit="case", disable=None, leave=False)

    def tell(self, name: str, rows: Sequence[Row], **more: Any) -> None:
        """Show rows and save them."""
        report.show(name, rows, self.console)
        report.save(self.output, name, rows, versions=machine.versions(), processor=machine.processor(), **more)


def speed(task: Task) -> None:
    """Measure and report times, ratios, and shares of what the machine can do."""
    settings, repeats, on_gpu = task.settings(Settings()), 2 if task.arguments.quick else 7, task.device.type == "cuda"

    def look() -> Any:
        return gpu.describe(task.device, repeats) if on_gpu else machine.describe(task.arguments.threads, repeats)

    host, measurements = look(), []
    with gpu.exact_products(), tqdm(total=len(task.workloads) * settings.rounds, unit="round", disable=None) as bar:
        for workload in task.workloads:
            bar.set_description(workload.name)
            measurements.append(
                measure.measure(
                    workload,
                    task.peers,
                    settings,
                    device=task.device,
                    jax_python=task.arguments.jax_python,
                    progress=bar.update,
                )
            )
    host = host.best(look())
    task.console.print(report.describe(host))
    report.show(report.caption(measurements), report.times_table(measurements, host), task.console)
    targets = report.targets_table(measurements)
    if targets:
        report.show("mcelbo against the fastest peer, value and gradients", targets, task.console)
    report.save_run(task.output, measurements, host)
    if on_gpu and peers.OWN in task.peers:
        launches(task)


def launches(task: Task) -> None:
    """Measure mcelbo's kernels one by one on a GPU, and report them beside what the model predicts."""
    from benchmarks import gpu_kernels  # wants numba-cuda as well

    for workload in task.workloads:
        title = f"{workload.name}: launches of value and gradients; under a GPU's name: prediction, unmeasured"
        report.show(title, gpu_kernels.table(workload, task.device), task.console)


def call_memory(task: Task) -> None:
    """Measure and report what a call adds to a process."""
    with task.progress(len(task.workloads) * len(task.peers)) as bar:
        rows = memory.call_memory(task.workloads, task.peers, task.arguments.threads, bar.update)
    task.tell("memory", rows)


def first_calls(task: Task) -> None:
    """Measure and report first calls."""
    with task.progress(len(task.workloads) * len(task.peers)) as bar:
        rows = memory.first_calls(task.workloads, task.peers, task.arguments.threads, bar.update)
    task.tell("first-call", rows)


def time_to_error(task: Task) -> None:
    """Measure and report time against error."""
    seconds, jax_python = task.settings(Settings()).seconds, task.arguments.jax_python
    with task.progress(len(task.workloads) * len(task.peers) * len(error.SAMPLES)) as bar:
        sweeps = [error.sweep(w, task.peers, seconds, jax_python, bar.update) for w in task.workloads]
    rows = [row for sweep in sweeps for row in sweep]
    task.tell("error", rows)
    error.plot(task.output / "error.png", rows)


def sobol_points(task: Task) -> None:
    """Measure and report the same with Sobol points."""
    seconds = task.settings(Settings()).seconds
    with task.progress(len(task.workloads) * len(sobol.LATENTS) * len(sobol.SAMPLES)) as bar:
        rows = [row for w in task.workloads for row in sobol.sweep(w, seconds, bar.update)]
    task.tell("sobol", rows)


def growth(task: Task) -> None:
    """Measure and report how costs grow."""
    settings = task.settings(scaling.SETTINGS)
    spans = scaling.QUICK if task.arguments.quick else scaling.FULL
    with task.progress(settings.rounds) as bar:
        found = scaling.sweep(settings, spans, task.arguments.threads, bar.update)
    for name, rows in found.tables.items():
        task.tell(name, rows, peaks=found.peaks, round_trips=found.round_trips, noisy=found.noisy)
    task.console.print(f"{report.trips(found.round_trips)}; load: {'NOISY' if found.noisy else 'quiet'}")
    scaling.plot(task.output / "scaling.png", found)


def readme_evidence(task: Task) -> None:
    """Print the README's evidence, and keep it as Markdown beside its picture."""
    from benchmarks import evidence  # wants the extra 'demo' as well

    task.output.mkdir(parents=True, exist_ok=True)
    hurry = ["--epochs", "1"] if task.arguments.quick else []
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evidence.main(["--output", str(task.output / "alike.png"), *hurry])
    task.console.out(printed.getvalue(), highlight=False)
    (task.output / "evidence.md").write_text(printed.getvalue())


@dataclass(frozen=True, slots=True)
class Subject:
    """What can be measured, and the workloads and peers that it looks at unless told otherwise."""

    run: Callable[[Task], None]
    workloads: tuple[str, ...] | None = ()  # None: all
    peers: tuple[str, ...] = (peers.OWN,)
    fresh: bool = False  # whether it measures processes that import torch
    on_gpu: bool = False  # whether it measures a GPU where there is one


SUBJECTS = {
    "speed": Subject(speed, None, peers.NAMES, on_gpu=True),
    "memory": Subject(call_memory, ("seed", "seed-linear", "affine", "mlp"), ("eager", peers.OWN), fresh=True),
    "first-call": Subject(first_calls, ("seed", "mlp"), ("eager", "compile", peers.OWN), fresh=True),
    "error": Subject(time_to_error, ("seed",), ("eager", peers.OWN)),
    "sobol": Subject(sobol_points, ("seed",), ("eager", peers.OWN)),
    "scaling": Subject(growth),
    "evidence": Subject(readme_evidence),
}
