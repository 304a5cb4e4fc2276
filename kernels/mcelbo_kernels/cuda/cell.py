"""What a pixel adds to the error after the last activation, and the activations between layers, as device functions."""

from __future__ import annotations

from typing import Any

from mcelbo_kernels.cuda.scalars import binding
from mcelbo_kernels.cuda.seam import device
from mcelbo_kernels.numerics import activations, cells


def activation(name: str, real: Any) -> Any:
    """Return the device function (a, parameter) -> (f(a), f'(a))."""
    return binding(real)(activations.BY_NAME[name])


def evaluation(likelihood: str, output: str, real: Any) -> Any:
    """Return the device function (a, x, parameter) -> (t, dt/da, dt/dx) of a pre-activation and a pixel."""
    activate, cell = activation(output, real), binding(real)(cells.BY_NAME[likelihood].cell)

    @device
    def evaluate(a, x, parameter):
        y, slope = activate(a, parameter)
        t, dy, dx = cell(y, x)
        return t, dy * slope, dx

    return evaluate
