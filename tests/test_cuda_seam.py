"""Machine code from kernels, kept between processes, and what a launch hands to the driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mcelbo_kernels import _compile

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the CUDA kernels, is not installed")

from numba.cuda import dispatcher

from mcelbo_kernels.cuda import DeviceArray, seam, sums
from mcelbo_kernels.cuda.seam import float32, float64, int32, int64


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a machine that compiles with no device."""
    monkeypatch.setattr(_compile, "DIRECTORY", tmp_path)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(8, 0)))
    return tmp_path


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


def test_what_a_launch_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda.core

    launched: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cuda.core, "launch", lambda *arguments: launched.append(arguments))
    monkeypatch.setattr(seam, "_stream", lambda handle: ("stream", handle))
    monkeypatch.setattr(seam, "_loaded", lambda kernel, capability: (kernel.name, capability))
    numbers = DeviceArray(1 << 40, (4,), np.dtype(np.float32), None)
    numbers_type = seam.pointer(float32)
    signature = (numbers_type, seam.tuple_of(int64, numbers_type), int32, float64)
    kernel = seam.Kernel("name", lambda: None, signature, 64, 1)
    seam.launch(kernel, (9, 0), 77, (3, 2), (numbers, (5, None), 6, 0.5))
    ((stream, config, loaded, *values),) = launched
    assert (stream, loaded) == (("stream", 77), ("name", (9, 0)))
    assert (tuple(config.grid)[:2], tuple(config.block)) == ((3, 2), (64, 1, 1))
    assert values == [1 << 40, 5, 0, 6, 0.5]
    assert [type(value) for value in values] == [int, np.int64, int, np.int32, np.float64]


def test_too_few_arguments_are_refused() -> None:
    kernel = seam.Kernel("name", lambda: None, (int64, int64), 64, 1)
    with pytest.raises(ValueError, match="zip"):
        seam.launch(kernel, (9, 0), 0, (1, 1), (1,))
