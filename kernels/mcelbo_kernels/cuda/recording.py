"""A call's launches, recorded once for a kind of call and repeated with other arrays.

What a call launches is decided by shapes and settings alone, and deciding it takes the CPU longer than the GPU takes
for a small problem. A `Recorder` stands in for a device: its arrays have no memory, and it writes down the launches.
Every argument becomes eight bytes, a slot: those of numbers are known then, those of arrays are an address, which is
known when the launches are repeated,

    slot = constant + address of its base,

the bases being nothing (address 0), each input, the scratch memory that all other arrays share, and each result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mcelbo_kernels.cuda.seam import Kernel, Placed, flat, slot_of
from mcelbo_kernels.cuda.target import Target

BOUNDARY = 256  # bytes: places in scratch memory begin at its multiples, as what allocators return does


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """An array that will have memory when the launches are repeated."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def bytes(self) -> int:
        """The size of its memory."""
        return prod(self.shape) * self.dtype.itemsize


class Launch(NamedTuple):
    """A launch as it was recorded: the members of tuples one by one, and arrays that may be places."""

    kernel: Kernel
    blocks: tuple[int, int]
    arguments: tuple[Any, ...]


class Recorder:
    """What stands for a device while a call is recorded: a `Target`."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.launches: list[Launch] = []
        self.made: list[Place] = []

    def empty(self, count: int, dtype: Any) -> Place:
        """Return a place for so many numbers."""
        self.made.append(Place((count,), np.dtype(dtype)))
        return self.made[-1]

    def upload(self, array: Any) -> Any:
        """Return a copy in the device's memory, which stays there."""
        return self.target.upload(array)

    def launch(self, kernel: Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
        """Write a launch down."""
        self.launches.append(Launch(kernel, blocks, tuple(flat(arguments))))


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A call's launches.

    Attributes
    ----------
    launches : list of Launch
    placed : list of Placed
        The same by the number of their first slot.
    constants, bases : int64 arrays, one number for each slot
        `bases` index [0, the inputs' addresses, the scratch memory's, the results'], which leave out what is None.
    inputs : list of Place or None
    scratch : dict of Place
        Where each array lies that is neither an input nor a result, in bytes.
    size : int
        Bytes of scratch memory.
    results : list of Place or None
    shapes : list of tuple
        Of the results, whose places are flat.
    """

    launches: list[Launch]
    placed: list[Placed]
    constants: NDArray[np.int64]
    bases: NDArray[np.int64]
    inputs: list[Place | None]
    scratch: dict[Place, int]
    size: int
    results: list[Place | None]
    shapes: list[tuple[int, ...]]


def record(
    call: Callable[[Target], Sequence[Place | None]],
    inputs: Sequence[Place | None],
    shapes: Sequence[tuple[int, ...]],
    target: Target,
) -> Recording:
    """Record a call.

    Parameters
    ----------
    call : callable
        Launches whatever it launches on the target that it is given, and returns its results.
    inputs : sequence of Place or None
        What it reads.
    shapes : sequence of tuple
        Of the results; what belongs to a result that is None does not count.
    target : Target
        The device, for what stays in its memory.

    Returns
    -------
    Recording
    """
    recorder = Recorder(target)
    results = list(call(recorder))
    scratch, size = dict[Place, int](), 0
    for place in recorder.made:
        if place not in results:
            scratch[place] = size
            size += -(-place.bytes // BOUNDARY) * BOUNDARY
    given, kept = ([place for place in places if place is not None] for places in (inputs, results))
    shared = 1 + len(given)
    base = dict(zip(given, range(1, shared), strict=True))
    base |= dict.fromkeys(scratch, shared) | {place: number for number, place in enumerate(kept, shared + 1)}
    placed, constants, bases = list[Placed](), list[int](), list[int]()
    for kernel, blocks, arguments in recorder.launches:
        placed.append(Placed(kernel, blocks, len(constants)))
        for kind, value in zip(flat(kernel.signature), arguments, strict=True):
            if isinstance(value, Place):
                constants.append(scratch.get(value, 0))
                bases.append(base[value])
            else:
                constants.append(slot_of(kind, value))
                bases.append(0)
    return Recording(
        recorder.launches,
        placed,
        np.array(constants, np.int64),
        np.array(bases, np.int64),
        list(inputs),
        scratch,
        size,
        results,
        list(shapes),
    )


def substituted(launch: Launch, arrays: dict[Place, Any]) -> tuple[Any, ...]:
    """Return a launch's arguments with arrays in the place of places."""
    return tuple(arrays[value] if isinstance(value, Place) else value for value in launch.arguments)
