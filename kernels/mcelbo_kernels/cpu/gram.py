"""Sums of squared errors of a decoder whose last layer is affine with identity output, without touching its pixels.

Of y = h W^T + c, pixel weights w that the batch shares, and a centre h0 = h(mu) through which nothing flows:

    r0 = x - h0 W^T - c,   a = (w r0) W,   G = W^T (w W)
    T  = sum_j w r0^2 + t,   t = delta G delta^T - 2 delta a,   delta = h - h0        one pass, see `quadratic`
    v  = mean_i delta,   S = sum_b mean_i delta^T delta,   P = r0 - v W^T
    dx = 2 w P,   dc = -2 sum_b w P,   dW = -2 ((w P)^T h0 + (w r0)^T v) + 2 w (W S)
    dw = sum_b r0 (r0 - 2 v W^T) + sum_k (W S)_k W_k

A sample costs H^2 instead of H m. Centred so, sums and means are as exact as the direct sum, but a sample that fits far
better than its centre is not: so this serves sums and means alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import cast

import numpy as np

from mcelbo_kernels.cpu.buffers import contiguous
from mcelbo_kernels.cpu.cell import QUADRATIC, Cell
from mcelbo_kernels.cpu.quadratic import activate_in_place
from mcelbo_kernels.cpu.schedule import quietly, run
from mcelbo_kernels.problem import Array, Gradients, Layer, Moments, Need, Problem

# What a call and a pixel's error take, in multiplications of a pass: measured, see `pays`.
FIXED_MULTIPLICATIONS = 4e7
MULTIPLICATIONS_OF_A_PIXEL = 8

Multiply = Callable[[Array, Array], Array]

_multiply: Multiply = np.matmul


def use_products(multiply: Multiply) -> None:
    """Let `multiply` do the plain products of matrices, in place of `numpy.matmul`.

    Parameters
    ----------
    multiply : callable
        (a, b) -> a b for two matrices of any strides and of one dtype.

    Examples
    --------
    >>> use_products(np.matmul)
    """
    global _multiply
    _multiply = multiply


def _start_anew() -> None:
    """Forget in a forked child who multiplies: another library's threads may be its parent's alone."""
    use_products(np.matmul)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def applies(problem: Problem) -> bool:
    """Tell whether the errors are a quadratic form of the last hidden layer, the same one for all data."""
    shared = problem.weight is None or len(problem.weight) == 1
    return problem.cell == "squared_error" and problem.layers[-1].activation.name == "identity" and shared


def pays(batch: int, samples: int, hidden: int, pixels: int) -> bool:
    """Tell whether it costs less than the grid, by the multiplications of value and gradients that differ.

    For each sample 3 H^2 (with the half of S, 2.5) instead of 3 H m, and for each call the products of G, S and the
    batch: 2 H^2 m and 5 B H m. As measured, the error of a pixel takes a pass as long as 8 more hidden units; and a
    call's products take twice as long as a pass's, with all that goes with them, on top of what they take at least.
    """
    grid = 3 * batch * samples * (hidden + MULTIPLICATIONS_OF_A_PIXEL) * pixels
    gram = 2.5 * batch * samples * hidden**2 + 2 * (2 * hidden**2 * pixels + 5 * batch * hidden * pixels)
    return gram + FIXED_MULTIPLICATIONS < grid


@quietly
def value_and_gradients(problem: Problem, need: Need, threads: int = 1) -> tuple[Moments, Gradients]:
    """Return what `schedule.value_and_gradients` returns, for problems that `applies` holds for."""
    multiply, (*hidden, last) = _multiply, problem.layers
    w_, real = last.weight, problem.x.dtype
    centre = hidden_values(problem, multiply)
    # The one difference of large numbers: of a good fit little would be left in single precision.
    exact = multiply(centre.astype(np.float64), w_.T.astype(np.float64))
    exact += last.bias
    np.subtract(problem.x, exact, out=exact)
    r0 = exact.astype(real)
    weighted, fit = r0, exact
    if problem.weight is not None:
        weighted = np.where(problem.weight == 0, real.type(0), problem.weight * r0)
        fit = np.where(problem.weight == 0, 0.0, problem.weight * exact)
        exact[np.broadcast_to(problem.weight == 0, exact.shape)] = 0.0
    fit = np.einsum("bj,bj->b", fit, exact)
    scaled = w_ if problem.weight is None else problem.weight.T * w_
    inner = Problem(
        multiply(weighted, w_),
        problem.mu if hidden else np.zeros_like(problem.mu),
        problem.logvar,
        (*hidden, Layer(multiply(w_.T, scaled), np.zeros(w_.shape[1], real))),
        problem.draw,
    )
    of_last = need.layers[-1]
    # v and S, whatever of the last layer, the data and the weights needs them
    squares, sums = of_last[0] or need.weight, need.x or need.weight or any(of_last)
    inner_need = Need(sums, False, need.mu, need.logvar, (*need.layers[:-1], (squares, False)))
    result, found = run(inner, inner_need, threads, likelihood=QUADRATIC, centre=centre if hidden else None)
    result = result._replace(mean=result.mean + fit)
    if not sums:
        return result, Gradients(None, None, found.mu, found.logvar, (*found.layers[:-1], (None, None)))
    v = cast(Array, found.x)
    change = multiply(v, w_.T)
    p = weighted - (change if problem.weight is None else problem.weight * change)
    dw = dc = d_weight = None
    if squares:
        s = cast(Array, found.layers[-1][0])
        ws = multiply(w_, np.tril(s) + np.tril(s, -1).T)
        if need.weight:
            d_weight = (r0 * (r0 - 2 * change)).sum(0) + (ws * w_).sum(1)
            d_weight = d_weight[None]
        if of_last[0]:
            direct = multiply(np.concatenate([p, weighted]).T, np.concatenate([centre, v]))
            dw = 2 * ((ws if problem.weight is None else problem.weight.T * ws) - direct)
    if of_last[1]:
        dc = (-2 * p.sum(0, dtype=np.float64)).astype(real)
    layers = (*found.layers[:-1], (dw, dc))
    return result, Gradients(2 * p if need.x else None, d_weight, found.mu, found.logvar, layers)


def hidden_values(problem: Problem, multiply: Multiply) -> Array:
    """Return the last hidden layer (B, H) of the posteriors' means."""
    h = problem.mu
    for layer in problem.layers[:-1]:
        a = contiguous(multiply(h, layer.weight.T) + layer.bias)
        cell = Cell("identity", (layer.activation.name,), QUADRATIC, False, False)
        activate_in_place(cell, a.reshape(-1), a.dtype.type(layer.activation.parameter))
        h = a
    return h
