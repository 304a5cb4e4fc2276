"""Programs that numba-cuda compiles from Python, with no device and no driver; importing this skips where it lacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.absent_device import compiling_for
from tests.ptx.program import Program, load

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles kernels to PTX, is not installed")

from numba import cuda

__all__ = ["compiled", "compiled_text", "cuda"]

CAPABILITY = (8, 0)


@cache
def compiled_text(kernel: Callable[..., None], *types: Any, fastmath: bool = False) -> str:
    """Return the PTX of a kernel with arguments of some numba types."""
    with compiling_for(CAPABILITY):
        text, _ = cuda.compile_ptx(kernel, types, cc=CAPABILITY, fastmath=fastmath)
    return text


@cache
def compiled(kernel: Callable[..., None], *types: Any, fastmath: bool = False) -> Program:
    """Return the program of a kernel with arguments of some numba types."""
    return load(compiled_text(kernel, *types, fastmath=fastmath))
