"""What the launches of a chunk have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mcelbo_kernels.cuda.layout import Kind
from mcelbo_kernels.cuda.model.counts import OF_A_REDRAW, Count
from mcelbo_kernels.cuda.model.gpu import Launch
from mcelbo_kernels.cuda.noise import INJECTED
from mcelbo_kernels.cuda.plan import Plan
from mcelbo_kernels.cuda.schedule import data
from mcelbo_kernels.cuda.seam import Kernel
from mcelbo_kernels.cuda.tile import REGISTERS

MOST_REGISTERS, ALLOTTED = 255, 8  # of a thread, and at a time
LOADS = 4  # that a loop waits for together, as the compiler unrolls it
WIDE = 8  # bytes of a float64


class Span(NamedTuple):
    """A chunk of a call: its first row, how many it has, and the bytes of its matrices."""

    plan: Plan
    begin: int
    rows: int
    size: int
    registers: Mapping[str, int]

    @property
    def kind(self) -> Kind:
        """The call."""
        return self.plan.kind

    @property
    def redrawn(self) -> Count:
        """Instructions of the noise of a thread's rows at once, drawn again."""
        return OF_A_REDRAW[self.kind.sampler == INJECTED]

    def data(self, n: int) -> int:
        """Return how many data, of n rows each, have rows in the chunk."""
        return data(self.begin, self.rows, n)

    def launch(self, kernel: Kernel, blocks: tuple[int, int], instructions: Count, **fields: Any) -> Launch:
        """Return a launch, whose bytes are given as numbers of the problem's precision."""
        item, bound = self.kind.dtype.itemsize, REGISTERS // (kernel.threads * kernel.blocks) // ALLOTTED * ALLOTTED
        registers = min(bound, MOST_REGISTERS, self.registers.get(kernel.name.partition(" ")[0], MOST_REGISTERS))
        fields |= {key: item * fields.get(key, 0) for key in ("read", "written", "given", "kept")}
        fields |= instructions._asdict() | {"chunk": self.size, "double": item == WIDE}
        return Launch(kernel.name, blocks, kernel.threads, registers, **fields)
