"""The machine: blocks of lanes that execute a program together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from tests.ptx.arguments import Arguments
from tests.ptx.instructions import GONE, HELD
from tests.ptx.integers import Array
from tests.ptx.memory import GenericMemory, LaneError, Lanes, LocalMemory, SharedMemory
from tests.ptx.program import Program

LANES = 2048  # at most of blocks that run together, unless one block has more
Size = int | tuple[int, ...]


class Fault(Exception):  # noqa: N818
    """A wrong access or a trap: what, at which line of the PTX, by which thread of which block."""


def launch(program: Program, grid: Size, block: Size, *arguments: Any, dynamic: int = 0) -> Counter[str]:
    """Run a program on all blocks of a grid and return how often each opcode was executed.

    Parameters
    ----------
    program : from `load`
    grid, block : numbers of blocks and of their threads along x, y, z
    *arguments : arrays, which are changed in place, `unwritten` arrays, NumPy scalars and tuples of these, flattened as
        numba does; Python's numbers get the type of their parameter
    dynamic : bytes of shared memory that the program declares without a size

    Returns
    -------
    counts : by opcode the sum over executions of the lanes that were there, those that a guard held back included

    Raises
    ------
    Fault : at an access out of bounds, misaligned, of what was not written, or in a race; arrays are then as they were
    """
    grid, block = _three(grid), _three(block)
    held = Arguments(program, arguments)
    threads, blocks = int(np.prod(block)), int(np.prod(grid))
    at_once = max(1, LANES // threads)
    counts: Counter[str] = Counter()
    for first in range(0, blocks, at_once):
        numbers = np.arange(first, min(first + at_once, blocks))
        machine = _Machine(program, held, grid, block, numbers, dynamic)
        machine.run()
        for instruction, count in zip(program.code, machine.counts, strict=True):
            if count:
                counts[instruction.statement.opcode] += int(count)
    held.write_back()
    return counts


def _three(size: Size) -> tuple[int, int, int]:
    x, y, z, *_ = (*((size,) if isinstance(size, int) else size), 1, 1)
    return x, y, z


def _coordinates(index: Array, size: tuple[int, int, int]) -> tuple[Array, Array, Array]:
    x, y, _ = size
    return index % x, index // x % y, index // (x * y)


class _Machine:
    """Some blocks: of the lanes that can run those always do that are at the lowest place in the code."""

    def __init__(self, program: Program, held: Arguments, grid: Any, block: Any, numbers: Array, dynamic: int) -> None:
        threads = int(np.prod(block))
        lanes = len(numbers) * threads
        self.program, self.parameters = program, held.parameters
        self.counts = np.zeros(len(program.code), np.int64)
        self.registers = [np.zeros(lanes, dtype) for dtype in program.registers]
        self.place = np.full(lanes, program.start)
        thread = np.tile(np.arange(threads), len(numbers))
        self.thread, self.block = _coordinates(thread, block), _coordinates(np.repeat(numbers, threads), grid)
        self.special = {"%laneid": thread % 32, "%warpid": thread // 32, "%dynamic_smem_size": np.full(lanes, dynamic)}
        for axis, name in enumerate("xyz"):
            self.special[f"%tid.{name}"], self.special[f"%ctaid.{name}"] = self.thread[axis], self.block[axis]
            self.special[f"%ntid.{name}"] = np.full(lanes, block[axis])
            self.special[f"%nctaid.{name}"] = np.full(lanes, grid[axis])
        shared = {address: size or dynamic for address, size in program.shared.items()}
        self.shared = SharedMemory(shared, len(numbers), threads, program.granules["shared"])
        local = LocalMemory(program.local, lanes, program.granules["local"])
        self.spaces: dict[str, Any] = {"global": held.memory, "shared": self.shared, "local": local}
        self.spaces["generic"] = GenericMemory(self.spaces)

    def count(self, lanes: Lanes) -> int:
        """Return how many lanes are meant."""
        return len(self.place) if isinstance(lanes, slice) else len(lanes)

    def run(self) -> None:
        """Run until every lane has exited."""
        with np.errstate(all="ignore"):
            while (lowest := int(self.place.min())) < GONE:
                if lowest >= HELD:  # nobody runs, so all that are left of any block are at a barrier
                    self._release()
                    continue
                here = self.place == lowest
                lanes = slice(None) if here.all() else np.flatnonzero(here)
                self._run_from(lowest, lanes, int(self.place[~here].min(initial=HELD)))

    def _release(self) -> None:
        """Let lanes go on from barriers, where those of a warp must have waited together."""
        starts = np.flatnonzero(self.special["%laneid"] == 0)
        left = self.place < GONE
        lowest = np.minimum.reduceat(self.place, starts)
        apart = left & (self.place != np.repeat(lowest, np.diff(starts, append=len(left))))
        if apart.any():
            lane = int(apart.argmax())
            what = "barrier at which not all of the warp wait"
            raise self._fault(LaneError(what, lane), int(self.place[lane]) - HELD - 1, slice(None))
        self.place[left] -= HELD
        self.shared.next_interval()

    def _run_from(self, place: int, lanes: Lanes, limit: int) -> None:
        """Let lanes run together until they part or come to where others are."""
        count = self.count(lanes)
        while place < limit:
            instruction = self.program.code[place]
            self.counts[place] += count
            taken = lanes if instruction.guard is None else self._guarded(lanes, *instruction.guard)
            some = self.count(taken)
            target: Any = place + 1
            step, jump = instruction.action
            try:
                if some and step is not None:
                    step(self, taken)
                elif some and jump is not None:
                    target = jump(self, taken)
            except LaneError as error:
                raise self._fault(error, place, taken) from None
            if isinstance(target, int) and (target == place + 1 or some == count):
                place = target
                continue
            self.place[lanes] = place + 1
            self.place[taken] = target
            return
        self.place[lanes] = place

    def _guarded(self, lanes: Lanes, register: int, negated: bool) -> Lanes:
        mask = self.registers[register][lanes] != negated
        if mask.all():
            return lanes
        return np.flatnonzero(mask) if isinstance(lanes, slice) else lanes[mask]

    def _fault(self, error: LaneError, place: int, lanes: Lanes) -> Fault:
        lane = error.position if isinstance(lanes, slice) else lanes[error.position]
        thread, block = (tuple(int(axis[lane]) for axis in axes) for axes in (self.thread, self.block))
        statement = self.program.code[place].statement
        return Fault(f"{error.what}: thread {thread} of block {block}, line {statement.line}: {statement.text}")
