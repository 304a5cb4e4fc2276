"""What is asked and answered about decoded samples that already lie in memory, and the check at the door."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mcelbo_kernels.problem import Array, check_cell

IDENTITY = "identity"  # the decoder is through, whatever it ended with


class DecodedErrors(NamedTuple):
    """Errors and the gradients that were asked for, None where nobody asked.

    What is summed is float64 whatever the dtype of the problem, so that sums of sums lose nothing.

    Attributes
    ----------
    errors : ndarray, shape (B, c), float64
    y : ndarray, shape (B, c, m), in the dtype of the problem
    x : ndarray, shape (B, m), float64
    weight : ndarray, shape (B or 1, m), float64
    """

    errors: NDArray[np.float64]
    y: Array | None
    x: NDArray[np.float64] | None
    weight: NDArray[np.float64] | None


def check_decoded(cell: str, y: Any, x: Any, weight: Any, upstream: Any) -> None:
    """Raise unless the cell is known, and y (B, c, m), x (B, m), weight (B or 1, m), upstream (B, c) go together."""
    check_cell(cell, IDENTITY)
    if len(y.shape) != 3 or x.shape != (y.shape[0], y.shape[2]):
        raise ValueError(f"y has shape {y.shape} and x {x.shape}: expected (B, c, m) and (B, m)")
    if weight is not None and weight.shape not in (x.shape, (1, x.shape[1])):
        raise ValueError(f"weight has shape {weight.shape}: expected {x.shape} or {(1, x.shape[1])}")
    if upstream is not None and upstream.shape != y.shape[:2]:
        raise ValueError(f"upstream has shape {upstream.shape}: expected {y.shape[:2]}")
    named = {"x": x, "y": y} | ({} if weight is None else {"weight": weight})
    for name, array in named.items():
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name} is {array.dtype}: expected float32 or float64")
        if array.dtype != x.dtype:
            raise TypeError(f"{name} is {array.dtype} but x is {x.dtype}: expected one dtype")
