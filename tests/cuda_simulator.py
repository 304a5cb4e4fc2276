"""The simulator as a device: kernels run as Python, one Python thread for each of theirs."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mcelbo_kernels.cuda.seam import Kernel, cuda


class Simulator:
    """A device whose memory is NumPy's; NUMBA_ENABLE_CUDASIM must be set before numba is imported.

    Attributes
    ----------
    simulated : set of str
        The first words of the names of all kernels that any of its kind has run.
    """

    simulated: ClassVar[set[str]] = set()

    def empty(self, count: int, dtype: Any) -> NDArray[Any]:
        """Return memory full of what spoils a result that reads it."""
        return np.full(count, np.nan, dtype)

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a copy."""
        return array.copy()

    def launch(self, kernel: Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
        """Simulate a kernel; its arrays have one axis."""
        self.simulated.add(kernel.name.split()[0])
        cuda.jit(kernel.function)[blocks, kernel.threads](*[flattened(argument) for argument in arguments])


def flattened(argument: Any) -> Any:
    """Return an array as its numbers one after the other."""
    if isinstance(argument, tuple):
        return tuple(flattened(member) for member in argument)
    return argument.reshape(-1) if isinstance(argument, np.ndarray) else argument
