"""Machine code from kernels, kept between processes, and what a launch hands to the driver."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mcelbo_kernels import _compile
from tests.absent_device import compiling_for

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the CUDA kernels, is not installed")

from cuda.bindings import driver

from mcelbo_kernels.cuda import DeviceArray, seam, sums
from mcelbo_kernels.cuda.seam import float32, float64, int32, int64

C_TYPES = {int32: ctypes.c_int32, int64: ctypes.c_int64, float32: ctypes.c_float, float64: ctypes.c_double}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a machine that compiles with no device."""
    monkeypatch.setattr(_compile, "DIRECTORY", tmp_path)
    with compiling_for((8, 0)):
        yield tmp_path


def test_machine_code_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = sums.finish_errors(float32)
    code, entry = seam.machine_code(kernel, (8, 0))
    assert code.startswith(b"\x7fELF")
    assert entry.encode() in code
    (kept,) = cache.iterdir()
    assert kept.suffix == ".cubin"
    monkeypatch.setattr(seam, "ptx_of", None)
    assert seam.machine_code(kernel, (8, 0)) == (code, entry)


def test_other_capabilities_and_kernels_have_code_of_their_own(cache: Path) -> None:
    kernels = [(sums.finish_errors(float32), (8, 0)), (sums.finish_errors(float32), (9, 0))]
    kernels += [(sums.finish_errors(float64), (8, 0))]
    codes = {seam.machine_code(*each)[0] for each in kernels}
    assert len(codes) == len(list(cache.iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compile, "DIRECTORY", cache / "gone")
    assert seam.machine_code(sums.finish_errors(float32), (8, 0))[0].startswith(b"\x7fELF")
    monkeypatch.setattr(_compile, "DIRECTORY", None)
    assert seam.machine_code(sums.finish_errors(float32), (8, 0))[0].startswith(b"\x7fELF")


@pytest.mark.usefixtures("cache")
def test_a_gpu_that_the_compiler_does_not_know() -> None:
    expected = r"finish_errors was not compiled for compute capability 99.0 \(.*: the compiler comes with mcelbo\["
    with pytest.raises(RuntimeError, match=expected):
        seam.machine_code(sums.finish_errors(float32), (99, 0))


def test_threads_that_load_a_kernel_at_once_launch_the_same(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together, found = Barrier(2), list[Any]()

    class Slow:
        """A library, of which both threads load one before either goes on."""

        @staticmethod
        def from_cubin(_code: bytes) -> Slow:
            together.wait(10)
            return Slow()

        def get_kernel(self, _entry: str) -> Any:
            return SimpleNamespace(handle=id(self))

    monkeypatch.setattr("cuda.core.ObjectCode", Slow)
    monkeypatch.setattr(seam, "machine_code", lambda *_: (b"", "entry"))
    kernel = seam.Kernel("name", lambda: None, (), 64, 1)
    threads = [Thread(target=lambda: found.append(seam._loaded(kernel, (8, 0)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1]


class Driver:
    """What the driver is asked to launch, and finds in memory then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Any = driver.CUresult.CUDA_SUCCESS) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answer = answer
        monkeypatch.setattr(driver, "cuLaunchKernel", self.launch)
        monkeypatch.setattr(seam, "_loaded", lambda kernel, capability: ((kernel, capability), None))

    def launch(self, function: Any, *given: Any) -> tuple[Any]:
        """Stand for the driver's function."""
        (kernel, capability), (*sizes, stream, places, extra) = function, given
        kinds = list(seam.flat(kernel.signature))
        pointers = (ctypes.c_void_p * len(kinds)).from_address(places)
        values = [
            C_TYPES.get(kind, ctypes.c_uint64).from_address(at).value for kind, at in zip(kinds, pointers, strict=True)
        ]
        self.asked.append((kernel.name, capability, sizes, int(stream), values, extra))
        return (self.answer,)


ARRAY = seam.pointer(float32)
SIGNATURE = (ARRAY, seam.tuple_of(int64, ARRAY), int32, float64, float32, int32)
KERNEL = seam.Kernel("name", lambda: None, SIGNATURE, 64, 1)


def test_what_a_launch_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Driver(monkeypatch).asked
    numbers = DeviceArray(1 << 46, (4,), np.dtype(np.float32), None)
    seam.launch(KERNEL, (9, 0), 77, (3, 2), (numbers, (-(1 << 40), None), 6, 0.1, -1.5, np.int32(-7)))
    values = [1 << 46, -(1 << 40), 0, 6, 0.1, -1.5, -7]
    assert asked == [("name", (9, 0), [3, 2, 1, 64, 1, 1, 0], 77, values, 0)]


def test_a_refused_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, driver.CUresult.CUDA_ERROR_INVALID_VALUE)
    kernel = seam.Kernel("some kernel", lambda: None, (int32,), 64, 1)
    with pytest.raises(RuntimeError, match="some kernel was not launched: CUDA_ERROR_INVALID_VALUE"):
        seam.launch(kernel, (9, 0), 0, (1, 1), (1,))


def test_an_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    success, memory = driver.CUresult.CUDA_SUCCESS, bytearray(b"......")
    address = ctypes.addressof((ctypes.c_char * 6).from_buffer(memory))
    waited: list[int] = []
    monkeypatch.setattr(driver, "cuMemAlloc", lambda size: (success, address))
    monkeypatch.setattr(driver, "cuMemcpyHtoD", lambda to, given, size: (ctypes.memmove(to, given, size) and success,))
    monkeypatch.setattr(driver, "cuStreamSynchronize", lambda stream: (waited.append(stream) or success,))
    assert seam.upload(b"abcd") == address
    assert memory == b"abcd.."
    assert waited == [0]
    freed: list[int] = []
    captures = driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    monkeypatch.setattr(driver, "cuMemFree", lambda address: (freed.append(address) or success,))
    monkeypatch.setattr(driver, "cuMemcpyHtoD", lambda *given: (captures,))
    with pytest.raises(RuntimeError, match=r"was not copied .*must have run once\): CUDA_ERROR_STREAM_CAPTURE"):
        seam.upload(b"abcd")
    assert freed == [address]
    monkeypatch.setattr(driver, "cuMemAlloc", lambda size: (driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0))
    with pytest.raises(RuntimeError, match=r"was not copied to the device .*: CUDA_ERROR_OUT_OF_MEMORY"):
        seam.upload(b"abcd")
    assert freed == [address]


def test_too_few_arguments_are_refused() -> None:
    kernel = seam.Kernel("name", lambda: None, (int64, int64), 64, 1)
    with pytest.raises(ValueError, match="zip"):
        seam.launch(kernel, (9, 0), 0, (1, 1), (1,))
