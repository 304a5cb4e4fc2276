"""The model of the CUDA kernels: it lists what the schedule launches, and its arithmetic is that done by hand.

How well its predictions hold only a GPU can tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the CUDA kernels, is not installed")
pytest.importorskip("psutil", reason="needs the extra 'bench'")

from benchmarks import gpu_model
from benchmarks.workloads import WORKLOADS, Workload
from mcelbo_kernels.cuda import algorithms, layout, schedule
from mcelbo_kernels.cuda.model import A100, H100, Gpu, Launch, launches, occupancy, predict
from mcelbo_kernels.cuda.model.gpu import dram_bytes, times, turns
from mcelbo_kernels.cuda.plan import plan_of
from mcelbo_kernels.cuda.seam import Kernel
from mcelbo_kernels.problem import Activation, Need, Problem
from tests.cuda_kernels import SPECIALISATIONS
from tests.strategies import problems

BY_NAME = {workload.name: workload for workload in WORKLOADS}
ON_BOTH = pytest.mark.parametrize("gpu", [H100, A100], ids=lambda gpu: gpu.name)


class Recorder:
    """A device that runs nothing, and notes the launches."""

    def __init__(self) -> None:
        self.launched: list[tuple[str, tuple[int, int], int]] = []

    def empty(self, count: int, dtype: Any) -> object:
        return object()

    def upload(self, array: Any) -> object:
        return object()

    def launch(self, kernel: Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
        self.launched.append((kernel.name, blocks, kernel.threads))


def assert_agrees(problem: Problem, need: Need, **given: Any) -> int:
    """The model's launches are the schedule's; return how many there are."""
    target = Recorder()
    call = schedule.Call(problem, need, None, target, **given)
    call.run()
    modelled = launches(call.kind)
    assert [(launch.name, launch.blocks, launch.threads) for launch in modelled] == target.launched
    return len(modelled)


@pytest.fixture
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks of as few rows as there can be."""
    monkeypatch.setattr(layout, "BYTES_OF_A_CHUNK", 0)
    monkeypatch.setattr(layout, "FEWEST_ROWS", 128)
    plan_of.cache_clear()
    yield
    plan_of.cache_clear()


def needs(problem: Problem) -> st.SearchStrategy[Need]:
    pairs = st.tuples(*[st.tuples(st.booleans(), st.booleans())] * len(problem.layers))
    weighted = st.booleans() if problem.weight is not None else st.just(False)
    return st.builds(Need, st.booleans(), weighted, st.booleans(), st.booleans(), pairs)


@settings(max_examples=60)
@given(data=st.data(), problem=problems())
def test_the_model_lists_what_the_schedule_launches(data: st.DataObject, problem: Problem) -> None:
    assert_agrees(problem, data.draw(needs(problem)))
    assert_agrees(problem, Need.nothing(problem), errors=object())
    assert_agrees(problem, data.draw(needs(problem)), upstream=object())


@settings(max_examples=60)
@given(data=st.data(), problem=problems(cells=("squared_error",)))
def test_the_model_lists_what_the_quadratic_form_launches(data: st.DataObject, problem: Problem) -> None:
    last = replace(problem.layers[-1], activation=Activation())
    weight = None if problem.weight is None else problem.weight[:1]
    problem = replace(problem, layers=(*problem.layers[:-1], last), weight=weight)
    assume(len(problem.x) and problem.layers[-1].weight.size)
    need, target = data.draw(needs(problem)), Recorder()
    algorithms.value_and_gradients(problem, need, None, target, "gram")
    modelled = launches(layout.kind_of(problem, need, False, False), algorithm="gram")
    assert [(launch.name, launch.blocks, launch.threads) for launch in modelled] == target.launched
    assert all(predict(launch, H100).seconds < 1 for launch in modelled)


@pytest.mark.usefixtures("_short_chunks")
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), problem=problems(shapes=("long",), samplers=("iid",), cells=("squared_error",)))
def test_chunks(data: st.DataObject, problem: Problem) -> None:
    need = data.draw(needs(problem))
    one = assert_agrees(replace(problem, draw=replace(problem.draw, num_samples=2)), need)
    assert assert_agrees(problem, need) > 8 * one


def call_of(name: str) -> dict[str, Launch]:
    """The launches of a workload by the kernel's first name; the last one of a name."""
    return {launch.label: launch for launch in launches(gpu_model.kind_of(BY_NAME[name]))}


def test_the_workloads_kernels_are_among_those_whose_machine_code_is_tested() -> None:
    launched = {launch.name for workload in WORKLOADS for launch in gpu_model.call_of(workload)}
    assert launched <= {case.make().name for case in SPECIALISATIONS}


def test_affine_by_hand() -> None:
    rows, d, m, n = 128 * 64, 32, 784, 64
    call = call_of("affine")
    assert sum(2 * launch.products for launch in call.values()) == 6 * rows * d * m == 1_233_125_376
    last = call["last"]
    # 64 tiles down and 7 across, of 128 rows and columns
    assert last.blocks == (64 * 7, 1)
    assert last.fmas == rows * 7 * 128 * d
    # two data lie in the rows of a tile
    assert last.read == 4 * (7 * rows * d + 64 * (m * d + m + 2 * m))
    assert last.written == 4 * (rows * m + 7 * rows)
    assert last.given == 4 * (m * d + m + 128 * m)
    assert last.kept == 4 * (rows * d + rows * m + 7 * rows)
    # of a thread 4 slices of 95 instructions, and the 300 and 200 of such a tile; of a cell 3 + 13 and 5 + 5, of 896
    # columns that tiles cover
    threads, cells = 448 * 256, rows * 896
    assert last.floats == threads * 16 + cells * 16
    assert last.others == threads * (4 * 95 + 300 + 200) + cells * 10
    backward = call["backward"]
    assert backward.blocks == (64, 4)
    assert backward.read == 4 * (rows * m + 64 * m * d)
    assert backward.written == 4 * 4 * rows * d
    # four groups take 25 slices of a part in 7 turns, 23 of the last one in 6
    assert backward.fmas == 64 * 256 * 64 * 8 * (3 * 7 + 6)
    assert backward.shared == 4 * 4 * 2 * 8 * (128 + 32 + 8) + 16
    weight = call["weight_gradient"]
    assert weight.blocks == (7, 37)
    assert weight.read == 4 * (rows * m + 7 * rows * d)
    assert weight.written == 4 * 37 * (m * d + m)
    # 16 groups of 16 threads take all of the 64 samples at once
    assert call["latent_gradient"].blocks == (2 * 128, 1)
    assert call["latent_gradient"].rounds == 2 + n / (4 * 16)


def test_seed_by_hand() -> None:
    thin = call_of("seed")["thin"]
    assert thin.products == 3 * 10_000 * 784
    # 5 pixels for each of 160 threads
    assert thin.fmas == 3 * 10_000 * 800
    assert thin.shared == 12_800
    assert thin.written == 4 * (2 * 10_000 + 264 * 2 * 784)
    # ten parts of 256 threads with four samples each; as many turns of the moments would not pay for a launch
    first, second = (call_of("seed")[f"latent_gradient_{stage}_parts"] for stage in ("in", "of"))
    assert (first.blocks, second.blocks) == ((1, 10), (1, 1))
    assert first.written == second.read - 4 == 8 * 10 * 2
    assert first.read == 4 * 10_000
    assert call_of("seed")["moments"].rounds == 2 + 10


def test_occupancy_by_hand() -> None:
    large = Launch("large", (1, 1), 256, 128, 17_408)
    # a warp takes 128 x 32 registers, so that there are 16, 8 a block
    assert occupancy(large, H100) == occupancy(large, A100) == (2, "registers")
    # 40,000 bytes and the 1,024 reserved are 321 pieces of 128 bytes, of which 228 KiB hold 5 and 164 KiB hold 4
    much = Launch("much", (1, 1), 128, 32, 40_000)
    assert occupancy(much, H100) == (5, "shared")
    assert occupancy(much, A100) == (4, "shared")
    # 33 registers are allotted as 40: a quarter of the registers holds 12 warps, all four 48, and not 51
    assert occupancy(Launch("few", (1, 1), 96, 33), H100) == (16, "registers")
    assert occupancy(Launch("small", (1, 1), 32, 16), H100) == (32, "blocks")
    assert occupancy(Launch("wide", (1, 1), 1024, 32), H100) == (2, "threads")


def test_waves_by_hand() -> None:
    """Of two blocks of 8 warps at once a wave takes two turns; the blocks that are left, up to two more."""

    def of(blocks: int, independent: int = 4) -> float:
        return turns(Launch("large", (blocks, 1), 256, 128, 17_408, independent=independent), H100)

    assert [of(blocks) for blocks in (1, 132, 133, 264, 265, 448)] == [1, 1, 2, 2, 3, 4]
    # 8 warps, each of which waits 4 cycles for every result, keep half of the schedulers busy
    assert of(1, independent=1) == 2
    # a scheduler's only warp takes 2 cycles an instruction, of more of them each 1 / 0.68; three blocks of two warps
    # give two of them a second one, as four do
    small = Launch("small", (132, 1), 64, 128, 8_704, independent=4)
    found = [turns(small._replace(blocks=(132 * blocks, 1)), H100) for blocks in (1, 2, 3, 4, 8, 9)]
    assert found == pytest.approx([2.72, 2.72, 4, 4, 8, 12 - 2 * (2 - 1.36)])


def test_bounds_by_hand() -> None:
    empty = Launch("empty", (132, 1), 1024, 32, rounds=0)
    assert predict(empty, H100) == (2e-6, "latency")
    # a wave of full multiprocessors issues 128 instructions a cycle on each, in 0.68 of the cycles
    fmas = 132 * 128 * 1.755e9
    assert times(empty._replace(fmas=fmas), H100)["fma"] == pytest.approx(1)
    assert predict(empty._replace(fmas=fmas), H100).seconds == pytest.approx(1 / 0.68 + 2e-6)
    assert predict(empty._replace(others=fmas), H100).bound == "issue"
    assert predict(empty._replace(fmas=fmas, double=True), H100).seconds == pytest.approx(2 + 2e-6)
    assert predict(empty._replace(given=3.35e12), H100) == (pytest.approx(1 + 2e-6), "dram")
    assert predict(empty._replace(read=5.5e12), H100) == (pytest.approx(1 + 2e-6), "l2")
    assert predict(empty._replace(kept=3.35e12, chunk=1 << 20), H100).bound == "latency"
    assert predict(empty._replace(kept=3.35e12, chunk=1 << 30), H100).bound == "dram"


@ON_BOTH
@pytest.mark.parametrize("name", BY_NAME)
def test_nothing_is_faster_than_the_device(name: str, gpu: Gpu) -> None:
    for launch in launches(gpu_model.kind_of(BY_NAME[name])):
        seconds = predict(launch, gpu).seconds
        assert seconds > 2 * launch.products / gpu.peak
        assert seconds > dram_bytes(launch, gpu) / (1e9 * gpu.dram)
        assert seconds > (launch.read + launch.written) / (1e9 * gpu.l2)
        assert launch.fmas >= launch.products
        assert all(value >= 0 for value in times(launch, gpu).values())


@ON_BOTH
@pytest.mark.parametrize("name", BY_NAME)
def test_more_samples_take_longer(name: str, gpu: Gpu) -> None:
    def seconds(workload: Workload) -> float:
        return sum(predict(launch, gpu).seconds for launch in launches(gpu_model.kind_of(workload)))

    found = [seconds(replace(BY_NAME[name], samples=4**power)) for power in range(9)]
    # more parts may be shared out among more groups of threads, which saves less than it may
    assert all(more > 0.99 * fewer for fewer, more in pairwise(found))
    assert found[-1] > 5 * found[0]


def test_registers_of_the_launch_bounds() -> None:
    kind = gpu_model.kind_of(BY_NAME["affine"])
    bounded = {launch.label: launch.registers for launch in launches(kind, {})}
    assert bounded["last"] == 128
    assert bounded["moments"] == 80
    assert bounded["draw"] == 128
    assert {launch.label: launch.registers for launch in launches(kind, {"last": 96})}["last"] == 96


def test_double_precision_takes_twice_the_bytes() -> None:
    kind = gpu_model.kind_of(BY_NAME["once"])
    single, double = (launches(kind._replace(dtype=np.dtype(real))) for real in (np.float32, np.float64))
    assert not any(launch.double for launch in single)
    assert all(launch.double for launch in double)
    assert [launch.label for launch in single] == [launch.label for launch in double]
    assert single[0].written * 2 == double[0].written


def test_a_quadratic_form_by_hand() -> None:
    batch, n, hidden, pixels = 128, 16, 512, 784
    call = launches(gpu_model.kind_of(BY_NAME["mlp-linear"]), algorithm="gram")
    form = next(launch for launch in call if launch.label == "form")
    assert form.products == batch * n * hidden**2
    # h0 W^T alone is in double precision, and its parts take eight bytes a number
    centre = next(launch for launch in call if launch.double)
    assert centre.products == batch * pixels * hidden
    assert [launch.double for launch in call].count(True) == 1
    assert centre.written % (8 * batch * pixels) == 0
    # of G the tiles up to the diagonal, 8 x 8 of 64 x 64 numbers
    square = next(launch for launch in call if launch.label == "weight_gradient")
    assert square.products == pixels * hidden**2 * 36 / 64


def test_the_printed_tables() -> None:
    file = StringIO()
    gpu_model.main(["affine", "seed"], Console(file=file, width=gpu_model.WIDTH))
    text = file.getvalue()
    assert text.count("prediction, unmeasured") == 3
    assert "1,233" in text
    assert "…" not in text
