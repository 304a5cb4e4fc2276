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

from typing import cast

import numpy as np

from mcelbo_kernels.cpu.buffers import contiguous
from mcelbo_kernels.cpu.cell import QUADRATIC, Cell
from mcelbo_kernels.cpu.layout import kind_of
from mcelbo_kernels.cpu.memory import Workspace, leave, take
from mcelbo_kernels.cpu.product import multiply
from mcelbo_kernels.cpu.quadratic import activate_in_place, mirrored
from mcelbo_kernels.cpu.schedule import quietly, run
from mcelbo_kernels.cpu.shape import host_shape
from mcelbo_kernels.problem import Array, Gradients, Layer, Moments, Need, Problem

# Measured, in multiplications of a pass: a call without its products, each datum's pixel in it, a pixel's error in the
# grid, and what a multiplication of those products takes, with all that goes with them.
OF_A_CALL, OF_A_DATUM_S_PIXEL, OF_AN_ERROR, OF_A_PRODUCT = 4.5e7, 400, 8, 1.4
# A sample's products are shorter than the grid's, and of one the half is enough.
OF_A_SAMPLE_S_PRODUCT = 0.75


def pays(batch: int, samples: int, hidden: int, pixels: int, gradient: bool = True) -> bool:
    """Tell whether it costs less than the grid, by the multiplications that differ.

    With gradients the grid takes 3 H m for each sample. This takes H^2 instead of H m there, and for each call the
    products of G, S and the batch: 2 H^2 m and 5 B H m. For the value alone it is one each of a sample and G, and two
    of the batch.
    """
    of_a_sample, of_a_square, of_a_batch = (3, 2, 5) if gradient else (1, 1, 2)
    grid = of_a_sample * batch * samples * (hidden + OF_AN_ERROR) * pixels
    products = of_a_square * hidden**2 * pixels + of_a_batch * batch * hidden * pixels
    of_samples = of_a_sample * OF_A_SAMPLE_S_PRODUCT * batch * samples * hidden**2
    of_pixels = OF_A_DATUM_S_PIXEL * batch * pixels
    return of_samples + OF_A_PRODUCT * products + of_pixels + OF_A_CALL < grid


@quietly
def value_and_gradients(problem: Problem, need: Need, threads: int = 1) -> tuple[Moments, Gradients]:
    """Return what `schedule.value_and_gradients` returns, for problems that `alternatives.applies` holds for."""
    kind = ("gram", kind_of(problem, need, host_shape(problem.x.dtype.name), threads=threads))
    memory = take(kind, Workspace)
    found = by_quadratic_form(problem, need, threads, memory.restart())
    leave(kind, memory)
    return found


def by_quadratic_form(problem: Problem, need: Need, threads: int, memory: Workspace) -> tuple[Moments, Gradients]:
    """Compute what is above, in the order in which it stands there."""
    *hidden, last = problem.layers
    (batch, pixels), width = problem.x.shape, last.weight.shape[1]
    w_, real = last.weight, problem.x.dtype
    # p and w r0, h0 and v: one product below the other is one product
    left, right = memory.take((2 * batch, pixels), real), memory.take((2 * batch, width), real)
    p, weighted, centre = left[:batch], left[batch:], hidden_values(problem, threads)
    fit, r0 = centre_errors(problem, centre, weighted, threads, memory)
    scaled = w_ if problem.weight is None else problem.weight.T * w_
    g = multiply(w_.T, scaled, threads, out=memory.take((width, width), real))
    inner = Problem(
        multiply(weighted, w_, threads),
        problem.mu if hidden else np.zeros_like(problem.mu),
        problem.logvar,
        (*hidden, Layer(g, np.zeros(width, real))),
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
    change = multiply(v, w_.T, threads, out=memory.take((batch, pixels), real))
    np.subtract(weighted, change if problem.weight is None else problem.weight * change, out=p)
    dw = dc = d_weight = None
    if squares:
        twice_s = mirrored(cast(Array, found.layers[-1][0]), real.type(2))
        dw = multiply(w_, twice_s, threads)
        if need.weight:
            d_weight = ((r0 * (r0 - 2 * change)).sum(0) + (dw * w_).sum(1) / 2)[None]
        if problem.weight is not None:
            dw *= problem.weight.T
        if of_last[0]:
            np.multiply(centre, real.type(-2), out=right[:batch])
            np.multiply(v, real.type(-2), out=right[batch:])
            multiply(left.T, right, threads, out=dw, add=True)
    if of_last[1]:
        dc = (-2 * p.sum(0, dtype=np.float64)).astype(real)
    layers = (*found.layers[:-1], (dw if of_last[0] else None, dc))
    return result, Gradients(2 * p if need.x else None, d_weight, found.mu, found.logvar, layers)


def centre_errors(
    problem: Problem, centre: Array, weighted: Array, threads: int, memory: Workspace
) -> tuple[Array, Array]:
    """Return sum_j w r0^2 (B,) and r0 (B, m), and write w r0 to `weighted`.

    This is the one difference of large numbers: of a good fit little would be left in single precision.
    """
    weight, bias = problem.layers[-1].weight, problem.layers[-1].bias
    wide_centre, wide_weight = memory.take(centre.shape), memory.take(weight.shape)
    wide_centre[:], wide_weight[:] = centre, weight
    exact = multiply(wide_centre, wide_weight.T, threads, out=memory.take(problem.x.shape))
    exact += bias
    np.subtract(problem.x, exact, out=exact)
    if problem.weight is None:
        weighted[:] = exact
        return np.einsum("bj,bj->b", exact, exact), weighted
    excluded, r0 = problem.weight == 0, exact.astype(weighted.dtype)
    weighted[:] = np.where(excluded, 0, problem.weight * r0)
    fit = np.where(excluded, 0, problem.weight * exact)
    exact[np.broadcast_to(excluded, exact.shape)] = 0
    return np.einsum("bj,bj->b", fit, exact), r0


def hidden_values(problem: Problem, threads: int) -> Array:
    """Return the last hidden layer (B, H) of the posteriors' means."""
    h = problem.mu
    for layer in problem.layers[:-1]:
        a = contiguous(multiply(h, layer.weight.T, threads) + layer.bias)
        cell = Cell("identity", (layer.activation.name,), QUADRATIC, False, False)
        activate_in_place(cell, a.reshape(-1), a.dtype.type(layer.activation.parameter))
        h = a
    return h
