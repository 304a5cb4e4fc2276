"""Functions of `numerics` applied to arrays, as scalars and in vector registers, for the tests that measure them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mcelbo_kernels.cpu.shape import host_shape, lanes_of
from mcelbo_kernels.cpu.tile import load_vector, store_vector

Array = NDArray[Any]


@njit(error_model="numpy")
def _over_vectors(shape, function, x, out):
    for i in range(0, x.size, lanes_of(shape)):
        store_vector(out, i, function(load_vector(shape, x, i)))


@njit(error_model="numpy")
def _over_scalars(function, x, out):
    for i in range(x.size):
        out[i] = function(x[i])


def over_vectors(function: Callable[..., Any], x: Array) -> Array:
    """Return function(x), computed vector by vector."""
    padded = np.pad(x, (0, -x.size % 16))
    out = np.empty_like(padded)
    _over_vectors(host_shape(x.dtype.name), function, padded, out)
    return out[: x.size]


def over_scalars(function: Callable[..., Any], x: Array) -> Array:
    """Return function(x), computed number by number."""
    out = np.empty_like(x)
    _over_scalars(function, x, out)
    return out
