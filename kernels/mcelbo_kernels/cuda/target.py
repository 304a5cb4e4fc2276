"""What runs the kernels: a device and its memory, as far as calls need to know them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mcelbo_kernels.cuda.seam import Kernel


@dataclass(frozen=True, slots=True, eq=False)
class DeviceArray:
    """Numbers in a device's memory, row after row.

    Attributes
    ----------
    address : int
    shape : tuple of int
    dtype : numpy.dtype
    owner : object
        What keeps the memory, such as a tensor.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any

    def __len__(self) -> int:
        return self.shape[0]


class Target(Protocol):
    """A device, or what stands for one in tests. An array is whatever its `launch` takes for one."""

    def empty(self, count: int, dtype: Any) -> Any:
        """Return an array of so many numbers, which may hold anything."""

    def upload(self, array: Any) -> Any:
        """Return an array that holds what a NumPy array holds, which nobody changes."""

    def launch(self, kernel: Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
        """Run a kernel after everything launched before it; None is an array that the kernel does not touch."""
