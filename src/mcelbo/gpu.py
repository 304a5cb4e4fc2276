"""NVIDIA GPUs as the CUDA kernels see them: torch's memory, torch's current stream, and what stands in their way."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mcelbo_kernels.cuda import DeviceArray
    from mcelbo_kernels.cuda.recording import Recording

PACKAGES = ("numba-cuda", "cuda-core", "cuda-bindings")
LOWEST_CAPABILITY = (7, 5)
INSTEAD = "Or pass decoder=lambda z: decoder(z), which decodes in chunks by plain torch on any device"
DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}


def has_kernels(device: torch.device) -> bool:
    """Tell whether there are fused kernels for a kind of device, be all they need installed or not."""
    return device.type == "cpu" or (device.type == "cuda" and torch.version.hip is None)


def require(device: torch.device) -> None:
    """Raise an error that says what to install unless the CUDA kernels run on a device."""
    found = obstacle(device)
    if found is not None:
        raise RuntimeError(f"{found}. {INSTEAD}")


@lru_cache(maxsize=64)
def obstacle(device: torch.device) -> str | None:
    """Return what keeps the CUDA kernels from running on a device, or None.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    str or None

    Examples
    --------
    >>> print(obstacle(torch.device("cpu")))
    tensors on cpu are not on an NVIDIA GPU
    """
    if device.type != "cuda":
        return f"tensors on {device} are not on an NVIDIA GPU"
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA: see https://pytorch.org/get-started for one with it"
    toolkit = int(torch.version.cuda.split(".")[0])
    extra = f"pip install 'mcelbo[cu{min(max(toolkit, 12), 13)}]'"
    missing = [name for name in PACKAGES if installed(name) is None]
    if missing:
        return f"the CUDA kernels need {' and '.join(missing)}, not installed here: {extra}"
    capability = torch.cuda.get_device_capability(device)
    if capability < LOWEST_CAPABILITY:
        name, (major, minor) = torch.cuda.get_device_name(device), capability
        return f"{name} has compute capability {major}.{minor}: the CUDA kernels need 7.5 or newer"
    try:
        from mcelbo_kernels.cuda.seam import driver_version
    except Exception as problem:  # whatever versions that do not go together raise
        return f"numba-cuda cannot be imported here ({type(problem).__name__}: {problem}): {extra}"
    return too_old(driver_version(), int(str(installed("cuda-bindings")).split(".")[0]))


def too_old(driver: int, compiler: int) -> str | None:
    """Return what is wrong where a driver (12040 for CUDA 12.4) is older than a compiler's major version."""
    if driver // 1000 >= compiler:
        return None
    return (
        f"the NVIDIA driver supports CUDA {in_words(driver)}, and the kernels' compiler is that of CUDA {compiler}: "
        f"update the driver, or pip install 'mcelbo[cu{driver // 1000}]'"
    )


def in_words(version: int) -> str:
    """Return a version of CUDA as people write it: 12.4 for 12040."""
    return f"{version // 1000}.{version % 1000 // 10}"


def supported_by_driver() -> str | None:
    """Return the newest CUDA that the driver supports, None without one; the driver itself is asked."""
    number = ctypes.c_int()
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except OSError:
        return None
    # nothing where the library is that of a toolkit, which has no driver
    return in_words(number.value) if number.value else None


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class TorchTarget:
    """A GPU with torch's allocator, on the stream that is torch's current one."""

    def __init__(self, device: torch.device) -> None:
        from mcelbo_kernels.cuda.seam import make_current

        self.device = device
        # torch does not in a thread that has not yet launched anything
        make_current(torch.cuda.current_device())
        self.capability = torch.cuda.get_device_capability(device)
        self.stream = torch.cuda.current_stream(device).cuda_stream

    def hold(self, tensor: Tensor) -> DeviceArray:
        """Return a tensor as the kernels take it, contiguous."""
        return held(tensor)

    def empty(self, count: int, dtype: Any) -> DeviceArray:
        """Return memory for so many numbers."""
        return held(torch.empty(count, dtype=DTYPES[np.dtype(dtype)], device=self.device))

    def upload(self, array: Any) -> DeviceArray:
        """Return a copy in the GPU's memory, made once for the same numbers."""
        from mcelbo_kernels.cuda import DeviceArray

        return DeviceArray(_copy(array.tobytes(), self.device), array.shape, array.dtype, None)

    def launch(self, kernel: Any, blocks: tuple[int, int], *arguments: Any) -> None:
        """Run a kernel on the stream."""
        from mcelbo_kernels.cuda import seam

        seam.launch(kernel, self.capability, self.stream, blocks, arguments)

    def repeat(
        self, recording: Recording, inputs: Sequence[Tensor | None], numbers: Sequence[int]
    ) -> list[Tensor | None]:
        """Launch what was recorded with these inputs and numbers, and return the results."""
        from mcelbo_kernels.cuda import seam

        given = [tensor.contiguous() for tensor in inputs if tensor is not None]
        scratch = torch.empty(recording.size, dtype=torch.uint8, device=self.device)
        results = [
            None if place is None else torch.empty(place.shape, dtype=DTYPES[place.dtype], device=self.device)
            for place in recording.results
        ]
        tensors = *given, scratch, *[result for result in results if result is not None]
        bases = np.array([0, *[tensor.data_ptr() for tensor in tensors], *numbers], np.int64)
        seam.launch_all(recording.launches, self.capability, self.stream, recording.constants + bases[recording.bases])
        return results


def held(tensor: Tensor) -> DeviceArray:
    """Return a tensor's memory as the kernels take it, contiguous."""
    from mcelbo_kernels.cuda import DeviceArray

    owner = tensor.detach().contiguous()
    dtype = np.dtype(str(owner.dtype).removeprefix("torch."))
    return DeviceArray(owner.data_ptr(), tuple(owner.shape), dtype, owner)


@cache
def _copy(numbers: bytes, device: torch.device) -> int:
    # Kept for good, as a captured graph replays what it found in memory, and not in torch's memory, which may belong to
    # one graph while another is the first to need the copy.
    from mcelbo_kernels.cuda.seam import upload

    return upload(numbers)


@contextmanager
def target_on(device: torch.device) -> Iterator[TorchTarget]:
    """Make a GPU the current one, as long as something is launched there."""
    require(device)
    with torch.cuda.device(device):
        yield TorchTarget(device)
