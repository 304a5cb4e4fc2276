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
from functools import cache
from importlib.metadata import version
from struct import pack
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import cuda, float32, float64, int32, int64, types, uint32, uint64
from numba.core import config
from numpy.typing import NDArray

from mcelbo_kernels import _compile

__all__ = [
    "ALIGNED",
    "SIMULATED",
    "VECTOR",
    "Kernel",
    "Placed",
    "cuda",
    "device",
    "driver_version",
    "flat",
    "float32",
    "float64",
    "int32",
    "int64",
    "is_aligned",
    "launch",
    "launch_all",
    "libdevice",
    "load_vector",
    "machine_code",
    "make_current",
    "pointer",
    "ptx_of",
    "slot_of",
    "store_vector",
    "tuple_of",
    "uint32",
    "uint64",
    "upload",
]

# in place of a device, for tests: kernels run as Python functions
SIMULATED = bool(config.ENABLE_CUDASIM)
libdevice: Any = None if SIMULATED else cuda.libdevice
INLINED: dict[str, Any] = {} if SIMULATED else {"forceinline": True}
# of shared memory that is read four numbers at a time
ALIGNED = None if SIMULATED else 16
VECTOR = 16  # bytes that a thread loads or stores at once
FORMATS = {int32: "i", int64: "q", float32: "f", float64: "d"}  # of numbers, as `struct` has them
SLOT = 8  # bytes for each argument of a launch


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


def intrinsic(generate: Callable[..., Any]) -> Any:
    """Make a function of what returns its signature and what writes its code; in the simulator nothing is aligned."""
    if SIMULATED:
        return lambda *_: False
    from numba.cuda.extending import intrinsic as made

    return made(generate)


@intrinsic
def is_aligned(_context: Any, array: Any, at: Any) -> Any:
    """is_aligned(array, at): whether number `at` lies where a vector may."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address = builder.ptrtoint(builder.gep(arguments[0], arguments[1:]), ir.IntType(64))
        return builder.icmp_unsigned("==", builder.and_(address, address.type(VECTOR - 1)), address.type(0))

    return types.boolean(array, int64), generate


@intrinsic
def load_vector(_context: Any, array: Any, at: Any) -> Any:
    """load_vector(array, at) -> tuple of the numbers of 16 bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = builder.load(as_vector(builder, signature.return_type.count, *arguments), align=VECTOR)
        numbers = [builder.extract_element(vector, ir.IntType(32)(k)) for k in range(signature.return_type.count)]
        return context.make_tuple(builder, signature.return_type, numbers)

    return types.UniTuple(array.dtype, VECTOR * 8 // array.dtype.bitwidth)(array, int64), generate


@intrinsic
def store_vector(_context: Any, array: Any, at: Any, numbers: Any) -> Any:
    """store_vector(array, at, numbers): store a tuple that fills 16 bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = as_vector(builder, numbers.count, *arguments[:2])
        vector = place.type.pointee(ir.Undefined)
        for k in range(numbers.count):
            number = builder.extract_value(arguments[2], k)
            vector = builder.insert_element(vector, number, ir.IntType(32)(k))
        builder.store(vector, place, align=VECTOR)
        return context.get_dummy_value()

    return types.void(array, int64, numbers), generate


def as_vector(builder: Any, count: int, array: Any, at: Any) -> Any:
    """Return the address of number `at` as that of a vector of so many numbers."""
    address = builder.gep(array, [at])
    return builder.bitcast(address, ir.VectorType(address.type.pointee, count).as_pointer())


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
    versions = [version(package) for package in ("numba-cuda", "cuda-bindings", "cuda-core")]
    key = f"{kernel.name} {capability} {versions}"
    path = (
        None if _compile.DIRECTORY is None else _compile.DIRECTORY / f"{hashlib.sha256(key.encode()).hexdigest()}.cubin"
    )
    if path is not None:
        with suppress(OSError):
            first, _, kept = path.read_bytes().partition(b"\n")
            return kept, first.decode()
    code, entry = _compiled(kernel, capability)
    if path is not None:
        with suppress(OSError):
            unfinished = path.with_suffix(f".{os.getpid()}-{get_ident()}")
            unfinished.write_bytes(entry.encode() + b"\n" + code)
            unfinished.replace(path)
    return code, entry


def _compiled(kernel: Kernel, capability: tuple[int, int]) -> tuple[bytes, str]:
    """Return what `machine_code` returns, or say what may be missing."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    major, minor = capability
    try:
        text = ptx_of(kernel, capability)
        linker = Linker(ObjectCode.from_ptx(text.encode()), options=LinkerOptions(arch=f"sm_{major}{minor}"))
        code: bytes = linker.link("cubin").code
    except Exception as problem:  # whatever a compiler that is not there, or older than the GPU, raises
        raise RuntimeError(
            f"{kernel.name.split()[0]} was not compiled for compute capability {major}.{minor} "
            f"({type(problem).__name__}: {str(problem).strip()}): the compiler comes with mcelbo[cu12] or "
            "mcelbo[cu13], whichever the driver supports, and must be new enough to know the GPU"
        ) from problem
    return code, text.partition(".entry ")[2].partition("(")[0].strip()


_LOADED: dict[tuple[Kernel, tuple[int, int]], tuple[Any, Any]] = {}


@cache
def _loaded(kernel: Kernel, capability: tuple[int, int]) -> tuple[Any, Any]:
    """Return a kernel as the driver takes it, for any device of the capability, and what keeps it loaded."""
    from cuda.bindings import driver
    from cuda.core import ObjectCode

    code, entry = machine_code(kernel, capability)
    loaded = ObjectCode.from_cubin(code).get_kernel(entry)
    # Of what two threads load at once the first counts: the other is unloaded, for want of anybody who keeps it.
    return _LOADED.setdefault((kernel, capability), (driver.CUfunction(int(loaded.handle)), loaded))


def driver_version() -> int:
    """Return the CUDA version that the driver supports, 12040 for CUDA 12.4."""
    from cuda.bindings import driver

    _, number = driver.cuDriverGetVersion()
    return int(number)


def make_current(ordinal: int) -> None:
    """Make a device the current one of this thread, where it may be the first to ask for any."""
    from cuda.core import Device

    Device(ordinal).set_current()


def upload(numbers: bytes) -> int:
    """Return the address of a copy in the current device's memory, which stays there until the process ends."""
    from cuda.bindings import driver

    reason = "a table was not copied to the device (before a graph is captured, such a call must have run once)"
    error, address = driver.cuMemAlloc(max(1, len(numbers)))
    check(error, reason)
    (error,) = driver.cuMemcpyHtoD(address, numbers, len(numbers))
    if not error:
        # the copy may be on its way when it returns, and other streams do not wait for it
        (error,) = driver.cuStreamSynchronize(0)
    if error:
        driver.cuMemFree(address)
    check(error, reason)
    return int(address)


def check(error: Any, message: str) -> None:
    """Raise a RuntimeError unless the driver reports success."""
    if error:
        raise RuntimeError(f"{message}: {error.name}")


class Placed(NamedTuple):
    """A launch whose arguments are numbered slots, from `first` on."""

    kernel: Kernel
    blocks: tuple[int, int]
    first: int


def slot_of(kind: Any, value: Any) -> int:
    """Return the eight bytes in which the driver finds an argument of a kernel.

    Parameters
    ----------
    kind : numba type
    value : number, or an array
        An array has an `address`, or is None where the kernel does not touch it.
    """
    if kind in FORMATS:
        return int.from_bytes(pack(FORMATS[kind], value).ljust(SLOT, b"\0"), "little", signed=True)
    return 0 if value is None else int(value.address)


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
        As the signature has them; see `slot_of`.
    """
    slots = [slot_of(kind, value) for kind, value in zip(flat(kernel.signature), flat(arguments), strict=True)]
    launch_all([Placed(kernel, blocks, 0)], capability, stream, np.array(slots, np.int64))


def launch_all(launches: Iterable[Placed], capability: tuple[int, int], stream: int, slots: NDArray[np.int64]) -> None:
    """Run kernels one after the other on the current device; the driver copies the slots before this returns.

    Parameters
    ----------
    launches : iterable of Placed
    capability, stream
        As for `launch`.
    slots : array of int64
        The arguments of all launches.
    """
    from cuda.bindings import driver

    places = np.arange(len(slots), dtype=np.int64) * SLOT + slots.ctypes.data
    begin, queue = places.ctypes.data, driver.CUstream(stream)
    for kernel, (across, down), first in launches:
        function = _loaded(kernel, capability)[0]
        size = kernel.threads, 1, 1
        (error,) = driver.cuLaunchKernel(function, across, down, 1, *size, 0, queue, begin + first * SLOT, 0)
        check(error, f"{kernel.name} was not launched")


def flat(values: Iterable[Any]) -> Iterator[Any]:
    """Yield arguments, or their types, the members of tuples one by one."""
    for value in values:
        if isinstance(value, (tuple, types.BaseTuple)):
            yield from flat(value)
        else:
            yield value
