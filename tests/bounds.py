"""How far rounding may move a result: every formula of the reference again, with all terms taken absolutely.

A sum of terms is off by a few epsilon times the sum of the terms' magnitudes, however much of the sum cancels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mcelbo_kernels.numerics import cells
from mcelbo_kernels.problem import Layer, Problem
from mcelbo_kernels.reference import noise, preactivations
from mcelbo_kernels.reference.activations import activate, slope

Array = Any


def wide(array: Array) -> Array:
    """Return the array in float64."""
    return np.asarray(array, np.float64)


def magnitudes(problem: Problem, upstream: Array | None = None) -> dict[str, Array]:
    """Return magnitudes of T, "errors", and of the gradients of sum(upstream T)."""
    eps = noise(problem.draw, *problem.mu.shape)
    mu, logvar = wide(problem.mu), wide(problem.logvar)
    sigma = np.exp(logvar / 2)[:, None]
    weights, biases = (
        [wide(array) for array in arrays] for arrays in zip(*map(parameters, problem.layers), strict=True)
    )
    a = preactivations(problem.layers, mu[:, None] + sigma * eps)
    slopes = [np.abs(slope(layer.activation, a_)) for layer, a_ in zip(problem.layers, a, strict=True)]
    x = wide(problem.x)[:, None]
    pixel = 1.0 if problem.weight is None else wide(problem.weight)[:, None]
    g = np.ones(eps.shape[:2]) if upstream is None else np.abs(wide(upstream))

    inputs, a_sizes = [np.abs(mu)[:, None] + np.abs(sigma * eps)], []  # (B, n, d), then each layer's
    for layer, w, c, a_, f in zip(problem.layers, weights, biases, a, slopes, strict=True):
        a_sizes.append(inputs[-1] @ np.abs(w).T + np.abs(c))
        inputs.append(np.abs(activate(layer.activation, a_)) + f * a_sizes[-1])
    y, y_size = activate(problem.layers[-1].activation, a[-1]), inputs.pop()
    t, dt_dy, dt_dx = (np.abs(part) for part in cells.BY_NAME[problem.cell].arrays(y, x, np))
    t_size = t + dt_dy * y_size + dt_dx * np.abs(x)
    slope_size = 2 * (np.abs(x) + y_size)  # for cells whose second derivatives are at most 2
    da_size = pixel * (slope_size * slopes[-1] + dt_dy * (slopes[-1] + a_sizes[-1]))
    found = {}
    for index in range(len(weights) - 1, -1, -1):
        found[f"weight of layer {index}"] = np.einsum("bi,bij,bik->jk", g, da_size, inputs[index])
        found[f"bias of layer {index}"] = np.einsum("bi,bij->j", g, da_size)
        dh_size = da_size @ np.abs(weights[index])
        # the slope of an activation is off by its second derivative, at most 1, times the error of its argument
        da_size = dh_size * (slopes[index - 1] + a_sizes[index - 1]) if index else dh_size
    dw = np.einsum("bi,bij->bj", g, t_size)
    return found | {
        "errors": (pixel * t_size).sum(2),
        "x": np.einsum("bi,bij->bj", g, pixel * slope_size),
        "weight": dw.sum(0, keepdims=True) if problem.weight is not None and len(problem.weight) == 1 else dw,
        "mu": np.einsum("bi,bik->bk", g, dh_size),
        "logvar": np.einsum("bi,bik,bik->bk", g, dh_size, np.abs(eps) * sigma),
    }


def parameters(layer: Layer) -> tuple[Array, Array]:
    """Return weight and bias."""
    return layer.weight, layer.bias
