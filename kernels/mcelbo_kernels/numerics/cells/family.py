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
    outputs : tuple of str, or None
        The activations that a decoder may end with; None accepts all.
    """

    cell: Callable[..., Any]
    arrays: Callable[..., tuple[Any, Any, Any]]
    outputs: tuple[str, ...] | None = None
