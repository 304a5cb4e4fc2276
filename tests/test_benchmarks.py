"""The benchmarks: shapes, peers that agree, rounds that a busy machine spoilt. Nothing here looks at speed."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("psutil", reason="needs the extra 'bench'")

from benchmarks import (
    cli,
    error,
    evidence,
    load,
    machine,
    measure,
    memory,
    peers,
    report,
    scaling,
    sobol,
    subjects,
    timing,
)
from benchmarks.measure import Measurement, Round, Settings
from benchmarks.workloads import WORKLOADS, Case, Workload, build
from mcelbo_kernels import reference
from mcelbo_kernels.problem import Activation, Draw, Layer, Need, Problem

JAX_PYTHON = os.environ.get("JAX_PYTHON")  # an interpreter that has JAX, where this one has not
NEEDS_JAX = pytest.mark.skipif(
    JAX_PYTHON is None and importlib.util.find_spec("jax") is None, reason="jax is not installed"
)
NEEDS_COMPILER = pytest.mark.skipif(peers.unavailable("compile", None) is not None, reason="no C++ compiler")
TORCH_WARNS = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
EVERY_PEER = [
    "eager",
    "mcelbo",
    pytest.param("jax", marks=NEEDS_JAX),
    pytest.param("compile", marks=[NEEDS_COMPILER, TORCH_WARNS, pytest.mark.slow]),
]
TINY = Workload("tiny", 2, 5, 6, 7, "sigmoid", 1.0)  # its kernels are those of many tests


def small(workload: Workload) -> Workload:
    """Return a copy of a workload small enough for tests, of the same form."""
    return replace(
        workload,
        batch=min(workload.batch, 3),
        latent=5,  # fewer have a pass and kernels of their own, which no peer knows of
        pixels=11,
        samples=min(workload.samples, 17),
        hidden=None if workload.hidden is None else 6,
    )


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


# Workloads


def test_workloads_are_the_designs_table() -> None:
    table = [(w.name, w.batch, w.latent, w.hidden, w.pixels, w.samples, w.output, w.target) for w in WORKLOADS]
    assert table == [
        ("seed", 1, 1, None, 784, 10_000, "sigmoid", 10.0),
        ("seed-linear", 1, 1, None, 784, 10_000, "identity", 40.0),
        ("affine", 128, 32, None, 784, 64, "sigmoid", 3.5),
        ("affine-linear", 128, 32, None, 784, 64, "identity", 15.0),
        ("mlp", 128, 32, 512, 784, 16, "sigmoid", 1.5),
        ("mlp-linear", 128, 32, 512, 784, 16, "identity", 2.0),
        ("once", 128, 20, 400, 784, 1, "sigmoid", 1.3),
    ]


@pytest.mark.parametrize(("name", "gflop"), [("affine", 1.23), ("mlp", 5.1), ("once", 0.25)])
def test_operations_with_gradients_are_the_designs(name: str, gflop: float) -> None:
    [workload] = [workload for workload in WORKLOADS if workload.name == name]
    assert workload.operations / 1e9 == pytest.approx(gflop, rel=0.02)  # the table gives two or three digits


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_tensors_have_the_workloads_shapes(workload: Workload) -> None:
    case = build(workload)
    assert case.x.shape == (workload.batch, workload.pixels)
    assert case.mu.shape == case.logvar.shape == (workload.batch, workload.latent)
    assert case.decoder(case.mu).shape == case.x.shape
    assert all(tensor.dtype == torch.float32 and tensor.requires_grad for tensor in case.inputs)
    assert not case.x.requires_grad


def test_tensors_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first = build(TINY, seed=5, inject_noise=True)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    again, other = build(TINY, seed=5, inject_noise=True), build(TINY, seed=6, inject_noise=True)
    for one, same, different in zip(tensors(first), tensors(again), tensors(other), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


def tensors(case: Case) -> list[Tensor]:
    assert case.eps is not None
    return [case.x, case.eps, *case.inputs]


# Peers


def reference_result(case: Case) -> list[np.ndarray]:
    """Return the value of reduction "mean" and its gradients by `Case.inputs`, by the kernels' reference."""
    assert case.eps is not None
    arrays = [tensor.detach().numpy() for tensor in case.inputs]
    last = len(case.layers) - 1
    layers = tuple(
        Layer(arrays[2 + 2 * i], arrays[3 + 2 * i], Activation(case.workload.output if i == last else "relu"))
        for i in range(last + 1)
    )
    draw = Draw(case.workload.samples, eps=case.eps.numpy())
    problem = Problem(case.x.numpy(), arrays[0], arrays[1], layers, draw)
    moments, gradients = reference.value_and_gradients(problem, Need.everything(problem))
    by_layer = [array for pair in gradients.layers for array in pair]
    return [array / case.x.numel() for array in (moments.mean.sum(), gradients.mu, gradients.logvar, *by_layer)]


@pytest.mark.parametrize("workload", [small(workload) for workload in WORKLOADS], ids=lambda workload: workload.name)
@pytest.mark.parametrize("peer", EVERY_PEER)
def test_every_peer_computes_the_same_from_the_same_noise(peer: str, workload: Workload) -> None:
    case = build(workload, torch.float64, inject_noise=True)
    with closing(peers.start(peer, case, JAX_PYTHON)) as runner:
        found = runner.result()
    # Sums of fewer than 10^3 float64 terms err by at most 10^3 * 2.2e-16 of their magnitudes, and these stay
    # within 100 times the largest gradient.
    for result, expected in zip(found, reference_result(case), strict=True):
        np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=2.2e-11 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["seed-linear", "affine-linear"])
@pytest.mark.parametrize("peer", EVERY_PEER)
def test_every_peer_draws_noise_of_the_posterior(peer: str, name: str) -> None:
    """The linear decoder's closed form, 5 standard errors by its known variance: one false alarm in 1.7 million."""
    [workload] = [small(workload) for workload in WORKLOADS if workload.name == name]
    case = build(replace(workload, samples=4096))
    [layer] = case.layers
    with torch.no_grad():
        weight, variance = layer.weight.double(), case.logvar.double().exp()  # (m, d), (B, d)
        r = case.x.double() - case.decoder(case.mu).double()  # (B, m)
        gram = weight.T @ weight
        expected = (r.square().sum(1) + variance @ gram.diagonal()).mean() / workload.pixels
        # Var T = 4 |Sigma^(1/2) W^T r|^2 + 2 tr A^2, A = Sigma^(1/2) W^T W Sigma^(1/2)
        linear = 4 * (variance * (r @ weight).square()).sum(1)
        square = 2 * torch.einsum("bk,kl,bl->b", variance, gram.square(), variance)
        standard_error = ((linear + square).sum() / 4096).sqrt() / case.x.numel()
    with closing(peers.start(peer, case, JAX_PYTHON)) as runner:
        first, second = (float(runner.result()[0]) for _ in range(2))
    assert first != second
    # beside the noise, float32 rounding of the sum: far below a standard error of 1e-3
    assert abs(first - float(expected)) < 5 * float(standard_error)
    assert abs(second - float(expected)) < 5 * float(standard_error)


@pytest.mark.parametrize("output", ["sigmoid", "identity"])
def test_eagers_value_alone_is_its_value_with_gradients(output: str) -> None:
    case = build(replace(TINY, output=output), torch.float64, inject_noise=True)
    runner = peers.eager(case)
    assert isinstance(runner, peers.TorchRunner)
    torch.testing.assert_close(runner.value(), runner.result()[0])


def test_a_worker_that_cannot_start_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="the JAX worker ended with status"):
        peers.start("jax", build(TINY), "/bin/false")
    assert capfd.readouterr().out == ""


# Visits and rounds


def test_a_visit_leaves_out_the_first_call_and_takes_the_median() -> None:
    ticks = iter([0.0, 1.0, 10.0, 13.0, 20.0, 22.0, 30.0, 100.0])
    calls: list[None] = []
    assert timing.visit(lambda: calls.append(None), 5.5, lambda: next(ticks)) == 2.0
    assert len(calls) == 4


def test_rounds_interleave_and_busy_ones_are_repeated() -> None:
    visited: list[str] = []

    def visit(name: str, seconds: float) -> float:
        visited.append(name)
        return seconds

    visits = {("value", name): lambda seconds, name=name: visit(name, seconds) for name in "ABC"}
    # Each round: a second of a 2-core machine, on which we use 1.5 s; in the second round others use 0.4 s.
    busy, readings = 0.0, []
    for index, others in enumerate([0.0, 0.4, 0.0]):
        readings.append(load.Reading(index, busy, 1.5 * index))
        busy += 1.5 + others
        readings.append(load.Reading(index + 1.0, busy, 1.5 * (index + 1)))
    clock, kept = iter(readings), []
    settings = Settings(rounds=2, seconds=0.25)
    rounds = measure.interleave(visits, settings, lambda: next(clock), 2, lambda: kept.append(None))
    assert visited == list("ABCABCABC")
    assert [round.load for round in rounds] == pytest.approx([0.0, 0.2, 0.0])
    assert len(kept) == 2
    assert measure.keep(rounds, settings) == ((rounds[0], rounds[2]), False)


def test_a_machine_that_stays_busy_ends_the_rounds_and_marks_them() -> None:
    clock = iter(load.Reading(float(i), 2.0 * i, 1.0 * i) for i in range(100))
    settings = Settings(rounds=3, attempts=2)
    rounds = measure.interleave({("value", "A"): lambda _: 1.0}, settings, lambda: next(clock), 2, lambda: None)
    kept, noisy = measure.keep(rounds, settings)
    assert (len(rounds), len(kept), noisy) == (6, 3, True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 10))
def test_the_quietest_rounds_are_kept(loads: list[float], wanted: int) -> None:
    rounds = [Round({}, share) for share in loads]
    settings = Settings(rounds=wanted)
    kept, noisy = measure.keep(rounds, settings)
    assert noisy == (sum(share <= settings.quiet for share in loads) < wanted)
    left = sorted(loads)
    assert sorted(round.load for round in kept) == left[: len(kept)]
    assert len(kept) >= min(wanted, len(loads))


@pytest.mark.parametrize(
    ("busy", "own", "share"),
    [
        (3.0, 3.0, 0.0),  # all ours
        (3.0, 2.0, 0.25),  # one of 2 x 2 core seconds used by others
        (2.9, 3.0, 0.0),  # coarse clocks: never negative
        (0.0, 3.0, math.inf),  # counters that miss our own use show nothing of others'
    ],
)
def test_load_is_what_others_used(busy: float, own: float, share: float) -> None:
    before = load.Reading(10.0, 100.0, 50.0)
    assert load.others(before, load.Reading(12.0, 100.0 + busy, 50.0 + own), 2) == pytest.approx(share)


def test_the_clocks_advance_with_our_own_work() -> None:
    before = load.read()
    while load.read().own - before.own < 0.05:
        sum(range(10_000))
    after = load.read()
    assert after.wall > before.wall
    assert after.busy >= before.busy


def test_ratios_are_taken_within_rounds() -> None:
    seconds = [(1.0, 2.0), (10.0, 20.0), (3.0, 30.0)]  # mcelbo's and eager's in each round
    rounds = tuple(Round({("gradients", "mcelbo"): a, ("gradients", "eager"): b}, 0.0) for a, b in seconds)
    measurement = Measurement(TINY, ("eager", "mcelbo"), rounds, 0, False)
    assert measurement.ratio("gradients", "eager") == 2.0  # the medians' ratio would be 20 / 3
    assert measurement.fastest("gradients") == "eager"


# Programs


def test_the_speed_run_writes_table_csv_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    arguments = ["--quick", "--peers", "eager,mcelbo", "--threads", "1", "--output", str(tmp_path)]
    assert cli.main(arguments, [TINY]) == 0
    assert torch.get_num_threads() == threads
    assert "FMA peak" in capsys.readouterr().out
    with (tmp_path / "speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["workload"], row["peer"]) for row in rows] == [("tiny", "eager"), ("tiny", "mcelbo")]
    assert all(float(row[column]) > 0 for row in rows for column in ("gradients", "value", "gradients_ratio"))
    assert float(rows[1]["gradients_ratio"]) == 1.0
    saved = json.loads((tmp_path / "speed.json").read_text())
    assert len(saved["rounds"]["tiny"]) == measure.QUICK.rounds
    assert saved["machine"]["threads"] == 1
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_error_run_follows_the_square_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error, "SAMPLES", (4, 16))
    arguments = ["error", "--workloads", "tiny", "--peers", "eager", "--seconds", "0", "--output", str(tmp_path)]
    cli.main(arguments, [TINY])
    first, second = json.loads((tmp_path / "error.json").read_text())["rows"]
    assert first["standard error %"] == pytest.approx(2 * second["standard error %"])
    assert (tmp_path / "error.png").exists()


@pytest.mark.slow
def test_the_sobol_run_compares_equal_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LATENTS": (2,), "SAMPLES": (16, 256), "REFERENCE": (1024, 2), "EAGER": 8}.items():
        monkeypatch.setattr(sobol, name, value)
    cli.main(["sobol", "--seconds", "0", "--output", str(tmp_path)], [replace(TINY, name="seed", hidden=None)])
    few, many = json.loads((tmp_path / "sobol.json").read_text())["rows"]
    # 16 times the points and far less than a quarter of the error
    assert many["standard error %"] < few["standard error %"] / 8
    assert many["iid samples"] > 64 * few["iid samples"]
    assert few["times faster"] == pytest.approx(few["iid eager ms"] / few["sobol ms"])


@pytest.mark.slow
def test_the_scaling_run_visits_every_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scaling", "--quick", "--threads", "2", "--output", str(tmp_path)]) == 0
    assert "to another core and back" in capsys.readouterr().out
    saved = json.loads((tmp_path / "scaling.json").read_text())
    assert [row["size"] for row in saved["rows"] if (row["axis"], row["output"]) == ("n", "sigmoid")] == [10, 30, 100]
    # so few pixels, or latents, are no matter for a quadratic form
    paths = {(row["axis"], row["output"], row["path"]) for row in saved["rows"]}
    assert paths >= {(axis, "identity", "gram") for axis in "nBH"}
    assert {path for _, output, path in paths if output == "sigmoid"} == {"grid"}
    assert all(row["ms"] > 0 and row["%peak"] > 0 for row in saved["rows"])
    assert len(saved["round_trips"]) == measure.QUICK.rounds
    slopes = json.loads((tmp_path / "scaling-slopes.json").read_text())["rows"]
    assert [row["axis"] for row in slopes] == 2 * ["n", "B", "m", "H", "d", "threads"]
    assert [row["n"] for row in json.loads((tmp_path / "scaling-memory.json").read_text())["rows"]] == [16, 16]
    noise = json.loads((tmp_path / "scaling-noise.json").read_text())["rows"]
    assert len(noise) == 9
    assert all(row["ns a normal"] > 0 for row in noise)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_slopes_are_those_of_the_upper_decade() -> None:
    curve = [{"size": size, "ms": 5.0 if size < 1000 else 3e-6 * size**2} for size in scaling.steps(10, 10_000)]
    row = scaling.slope_row("n", "sigmoid", curve)
    assert (row["from"], row["to"]) == (1000, 10_000)
    assert row["slope"] == pytest.approx(2)


@pytest.mark.skipif(load.physical_cores() < 2, reason="one core")
def test_a_round_trip_takes_time() -> None:
    assert 0 < machine.round_trip(10) < 1


def test_all_runs_every_subject_on_what_it_looks_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: dict[str, tuple[list[str], tuple[str, ...]]] = {}

    def pretend(name: str, task: subjects.Task) -> None:
        looked_at[name] = [workload.name for workload in task.workloads], tuple(task.peers)

    for name, subject in subjects.SUBJECTS.items():
        monkeypatch.setitem(subjects.SUBJECTS, name, replace(subject, run=partial(pretend, name)))
    assert cli.main(["all", "--workloads", "seed,mlp", "--peers", "eager,mcelbo", "--output", str(tmp_path)]) == 0
    assert looked_at == dict.fromkeys(subjects.SUBJECTS, (["seed", "mlp"], ("eager", "mcelbo")))
    assert cli.main(["all", "--output", str(tmp_path)]) == 0
    assert list(looked_at) == ["speed", "memory", "first-call", "error", "sobol", "scaling", "evidence"]
    assert looked_at["speed"][0] == [workload.name for workload in WORKLOADS]
    assert looked_at["error"] == (["seed"], ("eager", "mcelbo"))


def test_the_evidence_is_kept_beside_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evidence, "main", lambda arguments: print("| n |", *arguments))
    assert cli.main(["evidence", "--quick", "--output", str(tmp_path / "new")]) == 0
    printed = (tmp_path / "new" / "evidence.md").read_text()
    assert printed.split() == ["|", "n", "|", "--output", str(tmp_path / "new" / "alike.png"), "--epochs", "1"]
    assert "| n |" in capsys.readouterr().out


def test_memory_is_that_of_the_call_and_not_of_its_machine_code() -> None:
    workload = Workload("linear", 1, 4, 64, 1000, "identity", 1.0)
    assert memory.probe("memory", "mcelbo", workload, 1)["bytes"] < 3 * memory.MEGABYTE


def test_fresh_processes_report_memory_and_first_calls() -> None:
    done: list[None] = []
    [row] = memory.call_memory([TINY], ["mcelbo"], 1, lambda: done.append(None))
    assert row["MB at n = 16"] >= 0
    assert row["MB at n = 100,000"] >= 0
    [row] = memory.first_calls([TINY], ["mcelbo"], 1, lambda: done.append(None))
    assert row["first call cold s"] > 0
    assert row["first call warm s"] > 0
    assert len(done) == 2


def test_a_peer_that_stores_all_pixels_is_not_asked_for_what_cannot_fit() -> None:
    assert memory.fits(TINY)
    assert not memory.fits(replace(TINY, batch=10**6, samples=10**9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workloads", "sead"], "--workloads: sead is unknown: expected some of seed"),
        (["--peers", "eager,keras"], "--peers: keras is unknown"),
        (["memory", "--peers", "jax", "--jax-python", "python"], "jax is not measured by memory"),
    ],
)
def test_mistaken_options_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        cli.main(arguments)


def test_a_table_shows_columns_that_some_rows_lack(capsys: pytest.CaptureFixture[str]) -> None:
    report.show("title", [{"peer": "eager", "ms": 1.23456}, {"peer": "mcelbo", "ms": 2.0, "more": 12_345}])
    shown = capsys.readouterr().out
    assert "1.23" in shown
    assert "12,345" in shown
