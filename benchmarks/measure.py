"""Interleaved rounds: all peers in turn, over and over, and the rounds that a busy machine spoilt left out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import NamedTuple

import torch

from benchmarks import gpu, load, peers
from benchmarks.workloads import CPU, Workload, build


@dataclass(frozen=True, slots=True)
class Settings:
    """How long to look, and how quiet it must be."""

    rounds: int = 11
    seconds: float = 0.2  # timed calls of one visit
    quiet: float = 0.05  # largest share of the machine that others may use in a round
    attempts: int = 3  # rounds tried for each round wanted


QUICK = Settings(rounds=2, seconds=0.01, attempts=1)


class Round(NamedTuple):
    """Median seconds of a call by (mode, peer), and the share of the machine's CPUs that others used meanwhile."""

    seconds: Mapping[tuple[str, str], float]
    load: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is known of a workload: the rounds kept, how many were discarded, and why times are missing."""

    workload: Workload
    names: tuple[str, ...]
    rounds: tuple[Round, ...]
    discarded: int
    noisy: bool
    on_gpu: bool = False
    missing: tuple[str, ...] = ()

    def timed(self, mode: str, peer: str) -> bool:
        """Tell whether a peer was timed in a mode."""
        return (mode, peer) in self.rounds[0].seconds

    def seconds(self, mode: str, peer: str) -> list[float]:
        """Return a peer's time in every round kept."""
        return [round.seconds[mode, peer] for round in self.rounds]

    def median(self, mode: str, peer: str) -> float:
        """Return the median of these."""
        return statistics.median(self.seconds(mode, peer))

    def spread(self, mode: str, peer: str) -> float:
        """Return their interquartile range over their median."""
        times = self.seconds(mode, peer)
        if len(times) < 2:
            return 0.0
        lower, middle, upper = statistics.quantiles(times, n=4, method="inclusive")
        return (upper - lower) / middle

    def ratio(self, mode: str, peer: str, base: str = peers.OWN) -> float:
        """Return how many times longer than `base` a peer takes: the median of the rounds' ratios."""
        pairs = zip(self.seconds(mode, peer), self.seconds(mode, base), strict=True)
        return statistics.median(a / b for a, b in pairs)

    def fastest(self, mode: str) -> str | None:
        """Return the fastest of the others, None where mcelbo ran alone."""
        rivals = [name for name in self.names if name != peers.OWN]
        return min(rivals, key=lambda peer: self.median(mode, peer), default=None)


def interleave(
    visits: Mapping[tuple[str, str], Callable[[float], float]],
    settings: Settings,
    read: Callable[[], load.Reading],
    cores: int,
    progress: Callable[[], object],
) -> list[Round]:
    """Carry out rounds of all visits until enough were quiet, or too many were not."""
    rounds: list[Round] = []
    quiet = 0
    while quiet < settings.rounds and len(rounds) < settings.rounds * settings.attempts:
        before = read()
        seconds = {key: visit(settings.seconds) for key, visit in visits.items()}
        rounds.append(Round(seconds, load.others(before, read(), cores)))
        if rounds[-1].load <= settings.quiet:
            quiet += 1
            progress()
    return rounds


def keep(rounds: Sequence[Round], settings: Settings) -> tuple[tuple[Round, ...], bool]:
    """Return the quiet rounds, or where these are too few the quietest, and whether that was so ("noisy")."""
    quiet = tuple(round for round in rounds if round.load <= settings.quiet)
    if len(quiet) >= settings.rounds:
        return quiet, False
    return tuple(sorted(rounds, key=lambda round: round.load)[: settings.rounds]), True


def measure(
    workload: Workload,
    names: Sequence[str],
    settings: Settings,
    *,
    device: torch.device = CPU,
    jax_python: str | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Measurement:
    """Time the named peers on a workload; a GPU's times do not hang on what other processes do to the CPUs."""
    on_gpu = device.type == "cuda"
    case, modes = build(workload, device=device), gpu.MODES if on_gpu else peers.MODES
    settings = replace(settings, quiet=inf) if on_gpu else settings

    def start(name: str) -> peers.Runner:
        return gpu.start(name, case) if on_gpu else peers.start(name, case, jax_python)

    with ExitStack() as stack:
        runners = {name: stack.enter_context(closing(start(name))) for name in names}
        workers = [process for runner in runners.values() for process in runner.processes()]
        asked = {(mode, name): runner for mode in modes for name, runner in runners.items()}
        reasons = {key: runner.unavailable(key[0]) for key, runner in asked.items()}
        visits = {key: partial(asked[key].time, key[0]) for key, reason in reasons.items() if reason is None}
        for visit in visits.values():
            visit(0.0)  # compiles
        rounds = interleave(visits, settings, lambda: load.read(workers), load.cores(), progress)
    kept, noisy = keep(rounds, settings)
    missing = tuple(reason for reason in reasons.values() if reason is not None)
    return Measurement(workload, tuple(names), kept, len(rounds) - len(kept), noisy, on_gpu, missing)
