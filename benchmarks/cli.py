"""The command line; `benchmarks/__init__.py` says what it is for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from tqdm import tqdm

import benchmarks
from benchmarks import error, load, machine, measure, memory, peers, report, sobol
from benchmarks.workloads import WORKLOADS, Workload

RESULTS = Path(__file__).resolve().parent / "results"
SUBJECTS = ("speed", "memory", "first-call", "error", "sobol")
# Workloads and peers that a subject looks at unless told otherwise.
DEFAULT_WORKLOADS = {
    "memory": ("seed", "seed-linear", "affine", "mlp"),
    "first-call": ("seed", "mlp"),
    "error": ("seed",),
    "sobol": ("seed",),
}
DEFAULT_PEERS = {
    "memory": ("eager", peers.OWN),
    "first-call": ("eager", "compile", peers.OWN),
    "error": ("eager", peers.OWN),
    "sobol": ("eager", peers.OWN),
}
WIDTH = 110  # of tables, where there is no terminal to say


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = measure.Settings()
    found.add_argument("subject", nargs="?", default="speed", choices=SUBJECTS, help="what to measure (%(default)s)")
    found.add_argument("--workloads", type=names, help="comma-separated: " + ",".join(w.name for w in WORKLOADS))
    found.add_argument("--peers", type=names, help="comma-separated: " + ",".join(peers.NAMES))
    found.add_argument("--rounds", type=int, default=default.rounds, help="quiet rounds to take (%(default)s)")
    found.add_argument("--seconds", type=float, default=default.seconds, help="length of a visit (%(default)s)")
    found.add_argument(
        "--threads", type=int, default=load.physical_cores(), help="default: physical cores (%(default)s)"
    )
    found.add_argument("--quick", action="store_true", help="two short rounds, whatever the load")
    found.add_argument("--jax-python", metavar="PATH", help="the interpreter of an environment with JAX in it")
    found.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="for CSV, JSON, plots (%(default)s)")
    return found


def names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def chosen(wanted: Sequence[str], known: Sequence[str], option: str) -> tuple[str, ...]:
    """Return `wanted`, or end the program with a message if one of them is not known."""
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"{option}: {', '.join(unknown)} is unknown: expected some of {', '.join(known)}")
    return tuple(wanted)


def peers_for(arguments: argparse.Namespace, console: Console) -> tuple[str, ...]:
    """Return the peers to run; one that is asked for by name must be able to."""
    default = DEFAULT_PEERS.get(arguments.subject, peers.NAMES)
    wanted = chosen(arguments.peers or default, peers.NAMES, "--peers")
    if arguments.subject in ("memory", "first-call") and "jax" in wanted:
        raise SystemExit(f"--peers: jax is not measured by {arguments.subject}, whose processes import torch")
    reasons = {name: peers.unavailable(name, arguments.jax_python) for name in wanted}
    for name, reason in reasons.items():
        if reason is not None and arguments.peers:
            raise SystemExit(f"--peers: {reason}")
        if reason is not None:
            console.print(f"without {name}: {reason}")
    return tuple(name for name, reason in reasons.items() if reason is None)


def speed(arguments: argparse.Namespace, table: Sequence[Workload], running: Sequence[str], console: Console) -> None:
    """Measure and report times, ratios, and shares of what the machine can do."""
    settings = replace(measure.Settings(), rounds=arguments.rounds, seconds=arguments.seconds)
    settings = measure.QUICK if arguments.quick else settings
    repeats = 2 if arguments.quick else 7
    host = machine.describe(arguments.threads, repeats)
    measurements = []
    with tqdm(total=len(table) * settings.rounds, unit="round", disable=None) as bar:
        for workload in table:
            bar.set_description(workload.name)
            measurements.append(
                measure.measure(workload, running, settings, jax_python=arguments.jax_python, progress=bar.update)
            )
    host = host.best(machine.describe(arguments.threads, repeats))
    console.print(report.describe(host))
    report.show(
        "Milliseconds a call: with gradients, and the value alone; x: times mcelbo's",
        report.times_table(measurements, host),
        console,
    )
    targets = report.targets_table(measurements)
    if targets:
        report.show("mcelbo against the fastest peer, value and gradients", targets, console)
    report.save_run(arguments.output, measurements, host)


def other(arguments: argparse.Namespace, table: Sequence[Workload], running: Sequence[str], console: Console) -> None:
    """Measure and report memory, first calls, time against error, or that of Sobol points."""
    steps = len(table) * len(running) * (len(error.SAMPLES) if arguments.subject == "error" else 1)
    if arguments.subject == "sobol":
        steps = len(table) * len(sobol.LATENTS) * len(sobol.SAMPLES)
    with tqdm(total=steps, unit="case", disable=None) as bar:
        if arguments.subject == "memory":
            rows = memory.call_memory(table, running, arguments.threads, bar.update)
        elif arguments.subject == "first-call":
            rows = memory.first_calls(table, running, arguments.threads, bar.update)
        elif arguments.subject == "sobol":
            rows = [row for w in table for row in sobol.sweep(w, arguments.seconds, bar.update)]
        else:
            sweeps = (error.sweep(w, running, arguments.seconds, arguments.jax_python, bar.update) for w in table)
            rows = [row for sweep in sweeps for row in sweep]
    report.show(arguments.subject, rows, console)
    report.save(arguments.output, arguments.subject, rows, versions=machine.versions(), processor=machine.processor())
    if arguments.subject == "error":
        error.plot(arguments.output / "error.png", rows)


def main(argv: Sequence[str], table: Sequence[Workload] = WORKLOADS) -> int:
    """Run the command line on the workloads of `table`."""
    arguments = parser().parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH  # a file has room for whole numbers
    known = {workload.name: workload for workload in table}
    default = [name for name in DEFAULT_WORKLOADS.get(arguments.subject, known) if name in known]
    wanted = chosen(arguments.workloads or default, list(known), "--workloads")
    running = peers_for(arguments, console)
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        run = speed if arguments.subject == "speed" else other
        run(arguments, [known[name] for name in wanted], running, console)
    finally:
        torch.set_num_threads(before)
    console.print(f"results in {arguments.output}")
    return 0
