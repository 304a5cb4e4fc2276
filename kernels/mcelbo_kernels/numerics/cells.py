"""The pixel's share of the likelihood, the cell: (y, dy/da, x) -> (t, dt/da, dt/dx), a the last pre-activation."""

from __future__ import annotations

from mcelbo_kernels._compile import inline


@inline
def squared_error(y, slope, x):
    """Return the cell of t = (y - x)^2."""
    residual = y - x
    twice = residual + residual
    return residual * residual, twice * slope, -twice
