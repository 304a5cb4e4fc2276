"""Programs that numba-cuda compiles from Python, with no device and no driver."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.ptx.program import Program, load


def compiled(kernel: Callable[..., None], *types: Any, fastmath: bool = False) -> Program:
    """Return a kernel compiled for arguments of some numba types; skip the test where nothing compiles it."""
    pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles to PTX, is not installed")
    from numba import cuda
    from numba.cuda import dispatcher

    capability = (8, 0)
    with pytest.MonkeyPatch.context() as patch:
        # device functions ask the current device what to be compiled for
        patch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=capability))
        text, _ = cuda.compile_ptx(kernel, types, cc=capability, fastmath=fastmath)
    return load(text)
