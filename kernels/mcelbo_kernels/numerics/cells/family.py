"""What a file of this package defines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Family(NamedTuple):
    """A cell for every output activation that it accepts.

    Attributes
    ----------
    cell : callable
        (y, x) -> (t, dt/dy, dt/dx) of scalars or vectors, compiled into the kernels.
    arrays : callable
        (y, x, xp) -> the same of arrays that broadcast, xp being `numpy` or `torch`: what the reference computes with,
        and torch where no kernel can run.
    empty : float
        The y at which t and dt/dy are exactly 0 beside x = 0: what a row of pixels is padded with.
    outputs : tuple of str, or None
        The activations that a decoder may end with; None accepts all.
    """

    cell: Callable[..., Any]
    arrays: Callable[..., tuple[Any, Any, Any]]
    empty: float = 0.0
    outputs: tuple[str, ...] | None = None
