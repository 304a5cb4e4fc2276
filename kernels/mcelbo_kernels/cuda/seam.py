"""The one file that imports numba's CUDA target and the library of the CUDA driver.

Kernels are plain Python over the names here. numba-cuda compiles one to PTX for a compute capability, cuda-core links
that to machine code and launches it; neither needs a device until the launch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from threading import get_ident
from typing import Any

import numpy as np
from numba import cuda, float32, float64, int32, int64, types, uint32, uint64
from numba.core import config

from mcelbo_kernels import _compile

__all__ = [
    "ALIGNED",
    "SIMULATED",
    "Kernel",
    "cuda",
    "device",
    "driver_version",
    "flat",
    "float32",
    "float64",
    "int32",
    "int64",
    "launch",
    "libdevice",
    "machine_code",
    "make_current",
    "pointer",
    "ptx_of",
    "tuple_of",
    "uint32",
    "uint64",
]

# in place of a device, for tests: kernels run as Python functions
SIMULATED = bool(config.ENABLE_CUDASIM)
libdevice: Any = None if SIMULATED else cuda.libdevice
INLINED: dict[str, Any] = {} if SIMULATED else {"forceinline": True}
# of shared memory that is read four numbers at a time
ALIGNED = None if SIMULATED else 16
NUMPY_SCALARS = {int32: np.int32, int64: np.int64, float32: np.float32, float64: np.float64}


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A function to be compiled for a device; whoever makes one keeps it, so that each is the only one of its name.

    Attributes
    ----------
    name : str
        The function and all that it is compiled for.
    function : callable
        What a thread does.
    signature : tuple
        numba's types of its arguments.
    threads : int
        Threads of a block.
    blocks : int
        Blocks that are to fit a multiprocessor at once, which bounds the registers.
    """

    name: str
    function: Callable[..., None]
    signature: tuple[Any, ...]
    threads: int
    blocks: int


def device(function: Callable[..., Any]) -> Any:
    """Make a function that becomes part of every kernel that calls it."""
    return cuda.jit(device=True, **INLINED)(function)


def pointer(kind: Any) -> Any:
    """Return the type of an array argument: where its numbers lie, one after the other."""
    return types.CPointer(kind)


def tuple_of(*kinds: Any) -> Any:
    """Return the type of an argument that holds several."""
    return types.Tuple(kinds)


def ptx_of(kernel: Kernel, capability: tuple[int, int]) -> str:
    """Compile a kernel for a compute capability."""
    bounds = (kernel.threads, kernel.blocks)
    text, _ = cuda.compile_ptx(kernel.function, kernel.signature, cc=capability, launch_bounds=bounds)
    return str(text)


def machine_code(kernel: Kernel, capability: tuple[int, int]) -> tuple[bytes, str]:
    """Return a kernel's machine code and the name of its entry, from the cache or compiled."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    versions = [version(package) for package in ("numba-cuda", "cuda-bindings", "cuda-core")]
    key = f"{kernel.name} {capability} {versions}"
    path = (
        None if _compile.DIRECTORY is None else _compile.DIRECTORY / f"{hashlib.sha256(key.encode()).hexdigest()}.cubin"
    )
    if path is not None:
        with suppress(OSError):
            first, _, kept = path.read_bytes().partition(b"\n")
            return kept, first.decode()
    text = ptx_of(kernel, capability)
    entry = text.partition(".entry ")[2].partition("(")[0].strip()
    options = LinkerOptions(arch=f"sm_{capability[0]}{capability[1]}")
    code: bytes = Linker(ObjectCode.from_ptx(text.encode()), options=options).link("cubin").code
    if path is not None:
        with suppress(OSError):
            unfinished = path.with_suffix(f".{os.getpid()}-{get_ident()}")
            unfinished.write_bytes(entry.encode() + b"\n" + code)
            unfinished.replace(path)
    return code, entry


@cache
def _loaded(kernel: Kernel, capability: tuple[int, int]) -> Any:
    """Return a kernel as the driver holds it, for any device of the capability."""
    from cuda.core import ObjectCode

    code, entry = machine_code(kernel, capability)
    return ObjectCode.from_cubin(code).get_kernel(entry)


def driver_version() -> int:
    """Return the CUDA version that the driver supports, 12040 for CUDA 12.4."""
    from cuda.bindings import driver

    _, number = driver.cuDriverGetVersion()
    return int(number)


def make_current(ordinal: int) -> None:
    """Make a device the current one of this thread, where it may be the first to ask for any."""
    from cuda.core import Device

    Device(ordinal).set_current()


@lru_cache(maxsize=64)
def _stream(handle: int) -> Any:
    from cuda.core import LEGACY_DEFAULT_STREAM, Stream

    return Stream.from_handle(handle) if handle else LEGACY_DEFAULT_STREAM


def launch(
    kernel: Kernel, capability: tuple[int, int], stream: int, blocks: tuple[int, int], arguments: tuple[Any, ...]
) -> None:
    """Run a kernel on the current device.

    Parameters
    ----------
    kernel : Kernel
    capability : (major, minor)
        Of the device.
    stream : int
        The handle of the stream to run it on.
    blocks : (x, y)
    arguments : tuple
        As the signature has them; an array has an `address`, or is None where the kernel does not touch it.
    """
    from cuda.core import launch

    values = [take(value) for take, value in zip(_takers(kernel), flat(arguments), strict=True)]
    launch(_stream(stream), _config(blocks, kernel.threads), _loaded(kernel, capability), *values)


@lru_cache(maxsize=4096)
def _config(blocks: tuple[int, int], threads: int) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=blocks, block=threads)


@cache
def _takers(kernel: Kernel) -> list[Callable[[Any], Any]]:
    """Return for each argument, members of tuples one by one, what makes of it what the driver takes."""
    return [NUMPY_SCALARS.get(kind, address) for kind in flat(kernel.signature)]


def address(array: Any) -> int:
    """Return where an array lies, 0 for none."""
    return 0 if array is None else array.address


def flat(values: Iterable[Any]) -> Iterator[Any]:
    """Yield arguments, or their types, the members of tuples one by one."""
    for value in values:
        if isinstance(value, (tuple, types.BaseTuple)):
            yield from flat(value)
        else:
            yield value
