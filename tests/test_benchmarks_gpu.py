"""The benchmarks on a GPU: what is timed and how, on a made-up `torch.cuda`; and the real thing where there is one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("psutil", reason="needs the extra 'bench'")

from benchmarks import cli, gpu, machine, measure, peers, subjects
from benchmarks.workloads import Workload, build
from tests.made_up_cuda import Cuda, Graph, install, ticking

TINY = Workload("tiny", 2, 5, 6, 7, "sigmoid", 1.0)
SOME_GPU = gpu.Gpu("Some GPU", "9.0", "12.8", 5e13, 2e12, 1980, {"torch": "2.13.0"})


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A torch that sees a GPU, whose tensors are the CPU's."""
    monkeypatch.setattr(measure, "build", lambda workload, device: build(workload))
    return install(monkeypatch)


# Times


def test_a_visit_takes_the_median_between_events_and_waits_only_around_them(cuda: Cuda) -> None:
    # the first call is not timed; then come two batches of ten, of which the first takes less than was asked for
    call = ticking(cuda, iter([9.0, *[1.0] * 9, 5.0, *[2.0] * 10]))
    assert gpu.visit(call, 20.0, gpu.on_device) == pytest.approx(2.0)
    assert cuda.waits == 4


def test_the_cpus_time_is_its_own(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: float(next(ticks)))
    assert gpu.on_host(lambda: None) == [1.0] * gpu.CALLS
    assert cuda.waits == 2


def test_a_call_is_captured_once_it_is_warm(cuda: Cuda) -> None:
    captured: list[bool] = []
    graph = gpu.captured(lambda: captured.append(cuda.capturing))
    assert isinstance(graph, Graph)
    assert captured == [False] * gpu.WARM + [True]


def test_a_runner_times_every_mode(cuda: Cuda) -> None:
    runner = gpu.start("eager", build(TINY))
    assert [runner.unavailable(mode) for mode in gpu.MODES] == [None] * 4
    assert all(runner.time(mode, 0.0) > 0 for mode in gpu.MODES)
    graph = runner.graph
    assert isinstance(graph, Graph)
    assert graph.replays == 1 + gpu.CALLS
    runner.close()
    assert runner.graph is None


def test_a_capture_that_fails_says_why(cuda: Cuda) -> None:
    cuda.capture_fails = True
    runner = gpu.start("mcelbo", build(TINY))
    expected = "mcelbo was not captured: RuntimeError: operation not permitted when stream is capturing"
    assert runner.unavailable("graph") == expected
    assert [runner.unavailable(mode) for mode in gpu.MODES[:-1]] == [None] * 3
    assert runner.time("gradients", 0.0) > 0


@pytest.mark.parametrize("before", ["highest", "high"])
def test_products_are_exact_and_torch_is_left_as_it_was(before: str) -> None:
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        with gpu.exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(found)


# The GPU


def test_the_gpu_is_measured_and_named(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SIDE", 8)
    monkeypatch.setattr(gpu, "COPIED", 64)
    monkeypatch.setattr(gpu, "supported_by_driver", lambda: "12.9")
    found = gpu.describe(torch.device("cpu"), repeats=1)
    assert found.peak > 0
    assert found.bandwidth > 0
    assert (found.name, found.capability, found.driver, found.megahertz) == ("Some GPU", "9.0", "12.9", 1980)
    assert found.versions["CUDA"] == "12.8"


@pytest.mark.parametrize("problem", [ModuleNotFoundError("pynvml"), RuntimeError("driver not loaded")])
def test_clocks_are_not_always_known(cuda: Cuda, problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def clock_rate(device: torch.device) -> int:
        raise problem

    monkeypatch.setattr(torch.cuda, "clock_rate", clock_rate)
    assert gpu.clock_rate(torch.device("cpu")) is None


def test_the_better_of_two_looks_counts() -> None:
    again = gpu.Gpu("Some GPU", "9.0", "12.8", 4e13, 3e12, None, {})
    best = SOME_GPU.best(again)
    assert (best.peak, best.bandwidth) == (5e13, 3e12)


def test_a_gpu_in_words() -> None:
    assert "Some GPU, compute capability 9.0, driver for CUDA 12.8" in str(SOME_GPU)
    assert "TF32 off) 50.0 TFLOP/s at 1980 MHz; copies 2000 GB/s" in str(SOME_GPU)


# The command line


@pytest.mark.parametrize(("option", "kind"), [("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_a_gpu_is_taken_where_there_is_one(cuda: Cuda, option: str, kind: str) -> None:
    assert gpu.device_for(option).type == kind


def test_the_cpu_is_taken_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.device_for("auto").type == "cpu"
    with pytest.raises(SystemExit, match="no NVIDIA GPU that torch can see"):
        gpu.device_for("cuda")


def test_jax_and_compile_say_why_they_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    assert peers.unavailable("jax", "python", device) == "jax is measured on the CPU alone"
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.unavailable("compile", None, device) == "torch.compile needs triton on a GPU"


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Run the command line as on a GPU host; return the rows and all that was saved."""
    monkeypatch.setattr(gpu, "describe", lambda device, repeats: SOME_GPU)
    monkeypatch.setattr(machine, "describe", None)
    monkeypatch.setattr(subjects, "launches", lambda task: print(f"launches of {task.workloads[0].name}"))
    assert cli.main(["--quick", "--peers", "eager,mcelbo", "--output", str(tmp_path)], [TINY]) == 0
    with (tmp_path / "speed-cuda.csv").open() as file:
        return list(csv.DictReader(file)), json.loads((tmp_path / "speed-cuda.json").read_text())


def test_the_speed_run_is_of_the_gpu(
    cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, saved = run(tmp_path, monkeypatch)
    shown = capsys.readouterr().out
    for part in ("Some GPU", "TF32", "host ms", "graph ms", "launches of tiny"):
        assert part in shown
    assert "target" not in shown
    assert all(float(row[mode]) > 0 for row in rows for mode in gpu.MODES)
    assert saved["machine"]["name"] == "Some GPU"
    assert len(saved["rounds"]["tiny"]) == measure.QUICK.rounds
    assert (tmp_path / "speed-cuda.png").exists()


def test_missing_times_have_a_footnote(
    cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda.capture_fails = True
    rows, _ = run(tmp_path, monkeypatch)
    assert "-: mcelbo was not captured: RuntimeError" in capsys.readouterr().out
    assert [row["graph"] for row in rows] == ["-", "-"]


def test_other_subjects_stay_on_the_cpu(
    cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    devices: list[str] = []
    pretend = subjects.Subject(lambda task: devices.append(task.device.type))
    monkeypatch.setitem(subjects.SUBJECTS, "error", pretend)
    assert cli.main(["error", "--output", str(tmp_path)], [TINY]) == 0
    assert devices == ["cpu"]
    assert "error is measured on the CPU" in capsys.readouterr().out


@pytest.mark.gpu
def test_every_workload_runs_on_the_gpu(tmp_path: Path) -> None:
    arguments = ["--quick", "--device", "cuda", "--peers", "eager,mcelbo", "--output", str(tmp_path)]
    assert cli.main(arguments) == 0
    with (tmp_path / "speed-cuda.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(cli.WORKLOADS)
    assert all(float(row[mode]) > 0 for row in rows for mode in gpu.MODES)
