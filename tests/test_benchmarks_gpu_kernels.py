"""Kernels timed one by one, and set beside the model."""

from __future__ import annotations

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the CUDA kernels, is not installed")

from benchmarks import gpu_kernels
from benchmarks.gpu_kernels import Event
from benchmarks.gpu_model import call_of
from benchmarks.workloads import WORKLOADS


def kernel(name: str, begin: float, length: float) -> Event:
    """Return an event as a profiler tells of one of mcelbo's kernels."""
    return Event(f"mcelbo_kernels::cuda::layers::{name}::_3clocals_3e::kernel[abi:v1][abi:c2](float*)", begin, length)


def test_the_launches_of_a_call_in_their_order() -> None:
    others = [Event("void at::native::reduce_kernel<512>(int)", begin, 9.0) for begin in (1.5, 4.0)]
    calls = [kernel("last", 6.0, 4.0), kernel("hidden", 1.0, 1.0), kernel("last", 2.0, 2.0), kernel("hidden", 5.0, 3.0)]
    assert gpu_kernels.of_a_call([*others, *calls], 2) == [("hidden", 2.0), ("last", 3.0)]
    with pytest.raises(ValueError, match="2 calls launched 3 kernels, not the same in each call"):
        gpu_kernels.of_a_call(calls[:3], 2)


def test_measured_times_stand_beside_the_model() -> None:
    modelled = call_of(WORKLOADS[0])
    measured = [(launch.label, 10.0 + index) for index, launch in enumerate(modelled)]
    *rows, total = gpu_kernels.beside(measured, modelled)
    assert [row["launch"] for row in rows] == [launch.label for launch in modelled]
    assert total["measured us"] == sum(row["measured us"] for row in rows) == sum(length for _, length in measured)
    assert all(
        total[f"{name} us"] == pytest.approx(sum(row[f"{name} us"] for row in rows)) for name in gpu_kernels.MODELLED
    )
    with pytest.raises(ValueError, match="the model is of"):
        gpu_kernels.beside(measured[1:], modelled)


@pytest.mark.gpu
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_every_workload_is_launched_as_it_is_modelled(workload: object) -> None:
    import torch

    *rows, total = gpu_kernels.table(workload, torch.device("cuda", 0))  # type: ignore[arg-type]
    assert all(row["measured us"] > 0 for row in rows)
    assert total["measured us"] > 0
