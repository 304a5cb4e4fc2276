"""Programs that numba-cuda compiles from Python, with no device and no driver; importing this skips where it lacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from tests.ptx.program import Program, load

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles kernels to PTX, is not installed")

from numba import cuda
from numba.cuda import dispatcher

__all__ = ["compiled", "compiled_text", "cuda"]

CAPABILITY = (8, 0)


@cache
def compiled_text(kernel: Callable[..., None], *types: Any, fastmath: bool = False) -> str:
    """Return the PTX of a kernel with arguments of some numba types."""
    with pytest.MonkeyPatch.context() as patch:
        # device functions ask the current device what to be compiled for
        patch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=CAPABILITY))
        text, _ = cuda.compile_ptx(kernel, types, cc=CAPABILITY, fastmath=fastmath)
    return text


@cache
def compiled(kernel: Callable[..., None], *types: Any, fastmath: bool = False) -> Program:
    """Return the program of a kernel with arguments of some numba types."""
    return load(compiled_text(kernel, *types, fastmath=fastmath))
