"""The cell as a static argument: which activation and likelihood a kernel is compiled for."""

from __future__ import annotations

from dataclasses import dataclass

from numba import types
from numba.extending import overload

from mcelbo_kernels.cpu.tile import register_static, static
from mcelbo_kernels.numerics import activations, cells


@dataclass(frozen=True, slots=True)
class Cell:
    """The cell `likelihood` after the activation `activation`, with or without its gradient."""

    activation: str
    gradient: bool
    likelihood: str


class CellType(types.Type):
    """The numba type of a `Cell`; it carries the fields."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        super().__init__(name=repr(cell))


register_static(Cell, CellType)
has_gradient = static(lambda kind: kind.cell.gradient)


def evaluate(cell, a, x, parameter):
    """Return (t, dt/da, dt/dx) of pre-activations a and pixels x, scalars or vectors."""


@overload(evaluate, jit_options={"forceinline": True})
def evaluate_by_name(cell, a, x, parameter):
    """Choose the activation and the likelihood when the kernel is compiled."""
    activation = activations.BY_NAME[cell.cell.activation]
    likelihood = cells.BY_NAME[cell.cell.likelihood].cell

    def likelihood_after_activation(cell, a, x, parameter):
        y, slope = activation(a, parameter)
        t, dy, dx = likelihood(y, x)
        return t, dy * slope, dx

    return likelihood_after_activation
