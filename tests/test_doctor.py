"""What `mcelbo doctor` says of GPUs, and what it returns: torch's view of them is made up, or that there are none."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mcelbo import doctor, gpu

NAMES = ("Large GPU", "Small GPU")
CAPABILITIES = ((9, 0), (7, 5))
MISSING = "the CUDA kernels need numba-cuda, not installed here: pip install 'mcelbo[cu12]'"


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch see a GPU whose kernels lack nothing."""
    see(monkeypatch, 1)


def see(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let a torch that is built for CUDA 12.8 see so many GPUs, which compute as the CPU does."""
    on_cpu = doctor.largest_difference
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: NAMES[device.index])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: CAPABILITIES[device.index])
    monkeypatch.setattr(gpu, "obstacle", lambda device: None)
    monkeypatch.setattr(gpu, "supported_by_driver", lambda: "12.9")
    monkeypatch.setattr(doctor, "largest_difference", lambda device: on_cpu(torch.device("cpu")))


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return what was printed of each thing."""
    lines = [line.partition("  ") for line in capsys.readouterr().out.splitlines()]
    return {name: fact.strip() for name, _, fact in lines}


def test_no_gpu_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    see(monkeypatch, 0)
    monkeypatch.setattr(gpu, "supported_by_driver", lambda: None)
    assert doctor.run() == 0
    found = said(capsys)
    assert found["GPUs"] == "no NVIDIA GPU that torch can see, which is built for CUDA 12.8"
    assert found["fused CUDA path"] == "no NVIDIA GPU that torch can see"


@pytest.mark.parametrize(
    ("driver", "said_of_it"),
    [
        (None, ""),
        ("12.4", "; there is an NVIDIA driver, which supports CUDA 12.4"),
        (
            "11.8",
            "; there is an NVIDIA driver, which supports CUDA 11.8: "
            "https://pytorch.org/get-started has a PyTorch for that",
        ),
    ],
)
def test_a_driver_that_torch_does_not_use(driver: str | None, said_of_it: str, monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 0)
    monkeypatch.setattr(gpu, "supported_by_driver", lambda: driver)
    built = "no NVIDIA GPU that torch can see, which is built for CUDA 12.8"
    assert doctor.names_of_gpus() == built + said_of_it
    monkeypatch.setattr(torch.version, "cuda", None)
    advice = driver is not None
    assert doctor.names_of_gpus().startswith("this PyTorch is built without CUDA")
    assert ("https://pytorch.org/get-started" in doctor.names_of_gpus()) == advice


def test_a_torch_without_cuda_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(gpu, "supported_by_driver", lambda: None)
    assert doctor.run() == 0
    found = said(capsys)
    assert found["GPUs"] == "this PyTorch is built without CUDA"
    assert found["fused CUDA path"] == "no NVIDIA GPU that torch can see"


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_is_named_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run() == 0
    found = said(capsys)
    assert found["GPUs"] == (
        "Large GPU (compute capability 9.0); torch is built for CUDA 12.8, the driver supports 12.9"
    )
    assert found["fused CUDA path"].startswith("works: loss and gradients differ from torch's by")


@pytest.mark.usefixtures("one_gpu")
def test_the_packages_of_the_kernels_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "installed", {"numba-cuda": "0.30.4", "cuda-bindings": "12.9.4"}.get)
    doctor.run()
    assert said(capsys)["CUDA packages"] == "numba-cuda 0.30.4, cuda-core not installed, cuda-bindings 12.9.4"


@pytest.mark.usefixtures("one_gpu")
def test_what_a_gpu_lacks_comes_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "obstacle", lambda device: MISSING)
    assert doctor.run() == 1
    assert said(capsys)["fused CUDA path"] == f"MISSING: {MISSING}"


@pytest.mark.usefixtures("one_gpu")
def test_wrong_numbers_of_a_gpu_alone_are_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "largest_difference", lambda device: 0.5 if device.type == "cuda" else 0.0)
    assert doctor.run() == 1
    found = said(capsys)
    assert found["fused CPU path"].startswith("works")
    assert found["fused CUDA path"] == "WRONG: loss and gradients differ from torch's by 0.5, relative"


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_that_cannot_be_asked_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(device: torch.device) -> None:
        raise OSError("libcuda.so.1: no such file")

    monkeypatch.setattr(gpu, "obstacle", broken)
    assert doctor.run() == 1
    assert said(capsys)["fused CUDA path"] == "FAILS: OSError: libcuda.so.1: no such file"


def test_every_gpu_is_looked_at(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    see(monkeypatch, 2)
    monkeypatch.setattr(doctor, "largest_difference", lambda device: 0.5 if device.index else 0.0)
    assert doctor.run() == 1
    found = said(capsys)
    assert "Large GPU (compute capability 9.0), Small GPU (compute capability 7.5)" in found["GPUs"]
    works, wrong = found["fused CUDA path"].split("; ")
    assert works.startswith("cuda:0 works")
    assert wrong.startswith("cuda:1 WRONG")


def test_a_driver_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(gpu.ctypes, "CDLL", missing)
    assert gpu.supported_by_driver() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, whose kernels a doctor runs")
def test_nothing_of_cuda_is_imported_without_a_gpu() -> None:
    code = """
import sys
from mcelbo import doctor
assert doctor.run() == 0
kernels = ("numba.cuda", "numba_cuda", "cuda.core", "mcelbo_kernels.cuda")
print(sorted(name for name in sys.modules if name.startswith(kernels)))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"
