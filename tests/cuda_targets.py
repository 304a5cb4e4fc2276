"""What stands for a device in tests: kernels as the PTX that they compile to, interpreted, or as Python, simulated."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx import Memory, Program, launch, load

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the CUDA kernels, is not installed")

from numba.cuda import dispatcher

from mcelbo_kernels.cuda.seam import Kernel, flat, ptx_of

CAPABILITY = (8, 0)


class DeviceMemory(Memory):
    """Numbers in a device's memory, with the attributes that a `Problem` asks for."""

    def __init__(self, array: NDArray[Any], written: bool = True) -> None:
        super().__init__(np.ascontiguousarray(array), written)
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def __len__(self) -> int:
        return len(self.array)


@cache
def compiled(kernel: Kernel, capability: tuple[int, int] = CAPABILITY) -> Program:
    """Return the program that a kernel compiles to."""
    with pytest.MonkeyPatch.context() as patch:
        # device functions ask the current device what to be compiled for
        patch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=capability))
        return load(ptx_of(kernel, capability))


class Interpreter:
    """A device whose kernels are interpreted; it reports every wrong access, and reads of what nothing wrote."""

    def empty(self, count: int, dtype: Any) -> DeviceMemory:
        """Return memory that must be written before it is read."""
        return DeviceMemory(np.empty(count, dtype), written=False)

    def upload(self, array: NDArray[Any]) -> DeviceMemory:
        """Return a copy in the device's memory."""
        return DeviceMemory(array)

    def launch(self, kernel: Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
        """Interpret a kernel."""
        values = (0 if value is None else value for _, value in flat(kernel.signature, arguments))
        launch(compiled(kernel), blocks, kernel.threads, *values)
