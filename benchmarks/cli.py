"""The command line; `benchmarks/__init__.py` says what it is for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

import benchmarks
from benchmarks import gpu, load, measure, peers, scaling
from benchmarks.subjects import SUBJECTS, Task
from benchmarks.workloads import CPU, WORKLOADS, Workload

RESULTS = Path(__file__).resolve().parent / "results"
ALL = "all"
WIDTH = 110  # of tables, where there is no terminal to say


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual, few = measure.Settings(), scaling.SETTINGS
    found.add_argument(
        "subject", nargs="?", default="speed", choices=(*SUBJECTS, ALL), help="what to measure (%(default)s)"
    )
    found.add_argument("--workloads", type=names, help="comma-separated: " + ",".join(w.name for w in WORKLOADS))
    found.add_argument("--peers", type=names, help="comma-separated: " + ",".join(peers.NAMES))
    found.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU that torch sees, else the CPU"
    )
    found.add_argument("--rounds", type=int, help=f"quiet rounds to take ({usual.rounds}; scaling: {few.rounds})")
    found.add_argument("--seconds", type=float, help=f"length of a visit ({usual.seconds}; scaling: {few.seconds})")
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


def device_of(name: str, arguments: argparse.Namespace, console: Console) -> torch.device:
    """Return the device that a subject is measured on."""
    wanted = gpu.device_for(arguments.device)
    if wanted.type == "cpu" or SUBJECTS[name].on_gpu:
        return wanted
    console.print(f"{name} is measured on the CPU")
    return CPU


def peers_for(name: str, arguments: argparse.Namespace, device: torch.device, console: Console) -> tuple[str, ...]:
    """Return the peers to run; one that is asked for by name must be able to."""
    wanted = chosen(arguments.peers or SUBJECTS[name].peers, peers.NAMES, "--peers")
    if SUBJECTS[name].fresh and "jax" in wanted:
        raise SystemExit(f"--peers: jax is not measured by {name}, whose processes import torch")
    reasons = {peer: peers.unavailable(peer, arguments.jax_python, device) for peer in wanted}
    for peer, reason in reasons.items():
        if reason is not None and arguments.peers:
            raise SystemExit(f"--peers: {reason}")
        if reason is not None:
            console.print(f"{name} without {peer}: {reason}")
    return tuple(peer for peer, reason in reasons.items() if reason is None)


def task_of(name: str, arguments: argparse.Namespace, table: Sequence[Workload], console: Console) -> Task:
    """Return what the command line asks of a subject, or end the program with a message."""
    subject, known = SUBJECTS[name], {workload.name: workload for workload in table}
    default = [name for name in known if subject.workloads is None or name in subject.workloads]
    wanted = chosen(arguments.workloads or default, list(known), "--workloads")
    device = device_of(name, arguments, console)
    able = peers_for(name, arguments, device, console)
    return Task(arguments, [known[workload] for workload in wanted], able, console, device)


def main(argv: Sequence[str], table: Sequence[Workload] = WORKLOADS) -> int:
    """Run the command line on the workloads of `table`."""
    arguments = parser().parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH  # a file has room for whole numbers
    asked = SUBJECTS if arguments.subject == ALL else (arguments.subject,)
    tasks = {name: task_of(name, arguments, table, console) for name in asked}
    before = torch.get_num_threads()
    for name, task in tasks.items():
        torch.set_num_threads(arguments.threads)
        try:
            SUBJECTS[name].run(task)
        finally:
            torch.set_num_threads(before)
    console.print(f"results in {arguments.output}")
    return 0
