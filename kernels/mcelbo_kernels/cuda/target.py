"""What runs the kernels: a device with its memory, as far as the calls need to know it."""

from __future__ import annotations

from typing import Any, Protocol

from mcelbo_kernels.cuda.seam import Kernel


class Target(Protocol):
    """A device, or what stands for one in tests."""

    def empty(self, count: int, dtype: Any) -> Any:
        """Return memory for so many numbers, which may hold anything."""

    def upload(self, array: Any) -> Any:
        """Return a copy of a NumPy array in the device's memory."""

    def launch(self, kernel: Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
        """Run a kernel after everything launched before it."""
