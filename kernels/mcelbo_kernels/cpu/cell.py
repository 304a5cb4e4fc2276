"""The cell as a static argument: which activation and likelihood a kernel is compiled for."""

from __future__ import annotations

from dataclasses import dataclass

from numba import types
from numba.extending import overload

from mcelbo_kernels.cpu.tile import register_static, static
from mcelbo_kernels.numerics.activations import BY_NAME
from mcelbo_kernels.numerics.cells import squared_error


@dataclass(frozen=True, slots=True)
class Cell:
    """Squared error after the activation `activation`, with or without its gradient."""

    activation: str
    gradient: bool


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
def evaluate_after_activation(cell, a, x, parameter):
    """Choose the activation when the kernel is compiled."""
    activation = BY_NAME[cell.cell.activation]

    def squared_error_after_activation(cell, a, x, parameter):
        y, slope = activation(a, parameter)
        return squared_error(y, slope, x)

    return squared_error_after_activation
