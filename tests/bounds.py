"""How far rounding may move a result: every formula of the reference again, with all terms taken absolutely.

A sum of terms is off by a few epsilon times the sum of the terms' magnitudes, however much of the sum cancels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mcelbo_kernels.numerics import cells
from mcelbo_kernels.problem import Problem
from mcelbo_kernels.reference import noise, preactivations
from mcelbo_kernels.reference.activations import activate, slope

Array = Any


def wide(array: Array) -> Array:
    """Return the array in float64."""
    return np.asarray(array, np.float64)


def magnitudes(problem: Problem, upstream: Array | None = None) -> dict[str, Array]:
    """Return magnitudes of T, "errors", and of the gradients of sum(upstream T), for a decoder of one layer."""
    (layer,) = problem.layers
    eps = noise(problem.draw, *problem.mu.shape)
    mu, logvar, w, c = (wide(a) for a in (problem.mu, problem.logvar, layer.weight, layer.bias))
    sigma = np.exp(logvar / 2)[:, None]
    a = preactivations(problem.layers, mu[:, None] + sigma * eps)[0]
    y, f = activate(layer.activation, a), np.abs(slope(layer.activation, a))
    x = wide(problem.x)[:, None]
    pixel = 1.0 if problem.weight is None else wide(problem.weight)[:, None]
    g = np.ones(eps.shape[:2]) if upstream is None else np.abs(wide(upstream))

    z_size = np.abs(mu)[:, None] + np.abs(sigma * eps)  # (B, n, d)
    a_size = z_size @ np.abs(w).T + np.abs(c)  # (B, n, m)
    y_size = np.abs(y) + f * a_size
    t, dt_dy, dt_dx = (np.abs(part) for part in cells.BY_NAME[problem.cell].arrays(y, x, np))
    t_size = t + dt_dy * y_size + dt_dx * np.abs(x)
    slope_size = 2 * (np.abs(x) + y_size)  # for cells whose second derivatives are at most 2
    da_size = pixel * (slope_size * f + dt_dy * (f + a_size))
    dz_size = da_size @ np.abs(w)
    dw = np.einsum("bi,bij->bj", g, t_size)
    return {
        "errors": (pixel * t_size).sum(2),
        "x": np.einsum("bi,bij->bj", g, pixel * slope_size),
        "weight": dw.sum(0, keepdims=True) if problem.weight is not None and len(problem.weight) == 1 else dw,
        "mu": np.einsum("bi,bik->bk", g, dz_size),
        "logvar": np.einsum("bi,bik,bik->bk", g, dz_size, np.abs(eps) * sigma),
        "weight of layer 0": np.einsum("bi,bij,bik->jk", g, da_size, z_size),
        "bias of layer 0": np.einsum("bi,bij->j", g, da_size),
    }
