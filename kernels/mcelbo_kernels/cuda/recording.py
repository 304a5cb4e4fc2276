"""A call's launches, recorded once for a kind of call and repeated with other arrays.

What a call launches is decided by shapes and settings alone, and deciding it takes the CPU longer than the GPU takes
for a small problem. A `Recorder` stands in for a device: its arrays have no memory, and it writes down the launches.
Every argument becomes eight bytes, a slot, which is known then, but for arrays' addresses and numbers given anew:

    slot = constant + base,

the bases being nothing (0), the address of each input, of the scratch memory that all other arrays share, and of each
result, and the numbers.
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
# A recording takes some 300 bytes for each. Where there are more, a call's chunks keep the GPU busy for longer than it
# takes the CPU to decide on them.
MOST_LAUNCHES = 4096


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


class Given(int):
    """A number that may be another one whenever the launches are repeated, so that it must not decide what they are.

    It is known by its identity, and must reach the launches as it is.
    """


class Launch(NamedTuple):
    """A launch as it was recorded: the members of tuples one by one, and arrays that may be places."""

    kernel: Kernel
    blocks: tuple[int, int]
    arguments: tuple[Any, ...]


class TooManyLaunchesError(Exception):
    """A call that would gain nothing from being recorded, and take much memory for it."""


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
        if len(self.launches) == MOST_LAUNCHES:
            raise TooManyLaunchesError
        self.launches.append(Launch(kernel, blocks, tuple(flat(arguments))))


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A call's launches.

    Attributes
    ----------
    launches : list of Placed
        By the number of their first slot.
    constants, bases : int64 arrays, one number for each slot
        `bases` index [0, the inputs' addresses, the scratch memory's, the results', the numbers], which leave out what
        is None.
    size : int
        Bytes of scratch memory.
    results : list of Place or None
    """

    launches: list[Placed]
    constants: NDArray[np.int64]
    bases: NDArray[np.int64]
    size: int
    results: list[Place | None]


def record(
    call: Callable[[Target], Sequence[Place | None]],
    inputs: Sequence[Place | None],
    shapes: Sequence[tuple[int, ...]],
    target: Target,
    numbers: Sequence[Given] = (),
) -> Recording | None:
    """Record a call, unless it has more launches than `MOST_LAUNCHES`.

    Parameters
    ----------
    call : callable
        Launches whatever it launches on the target that it is given, and returns its results.
    inputs : sequence of Place or None
        What it reads.
    shapes : sequence of tuple
        Of the results, which are flat; what belongs to a result that is None does not count.
    target : Target
        The device, for what stays in its memory.
    numbers : sequence of Given
        What it takes besides.

    Returns
    -------
    Recording or None
    """
    recorder = Recorder(target)
    try:
        results = list(call(recorder))
    except TooManyLaunchesError:
        return None
    scratch, size = dict[Place, int](), 0
    for place in recorder.made:
        if place not in results:
            scratch[place] = size
            size += -(-place.bytes // BOUNDARY) * BOUNDARY
    given, kept = ([place for place in places if place is not None] for places in (inputs, results))
    shared = 1 + len(given)
    base = {id(place): number for number, place in enumerate(given, 1)} | dict.fromkeys(map(id, scratch), shared)
    base |= {id(item): number for number, item in enumerate([*kept, *numbers], shared + 1)}
    launches, constants, bases = list[Placed](), list[int](), list[int]()
    for kernel, blocks, arguments in recorder.launches:
        launches.append(Placed(kernel, blocks, len(constants)))
        for kind, value in zip(flat(kernel.signature), arguments, strict=True):
            known = not isinstance(value, (Place, Given))
            constants.append(slot_of(kind, value) if known else scratch.get(value, 0))
            bases.append(0 if known else base[id(value)])
    return Recording(
        launches,
        np.array(constants, np.int64),
        np.array(bases, np.int64),
        size,
        [
            None if place is None else Place(tuple(shape), place.dtype)
            for place, shape in zip(results, shapes, strict=True)
        ],
    )
