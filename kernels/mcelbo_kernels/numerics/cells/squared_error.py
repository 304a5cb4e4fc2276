"""Squared error: t = (y - x)^2, dt/dy = 2 (y - x), dt/dx = -dt/dy."""

from __future__ import annotations

from typing import Any

from mcelbo_kernels._compile import inline
from mcelbo_kernels.numerics.cells.family import Family


@inline
def squared_error(y, x):
    """Return (t, dt/dy, dt/dx)."""
    residual = y - x
    twice = residual + residual
    return residual * residual, twice, -twice


def squared_error_of_arrays(y: Any, x: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Return (t, dt/dy, dt/dx)."""
    r = x - y
    return r**2, -2 * r, 2 * r


SQUARED_ERROR = Family(squared_error, squared_error_of_arrays)
