"""The errors of decoded samples that already lie in memory: the reduction of the chunked path.

T[b,i] = sum_j w t(y, x):    dT/dy = w dt/dy,    dT/dx = w dt/dx,    dT/dw = t,    t the cell
"""

from __future__ import annotations

import numpy as np

from mcelbo_kernels._compile import inline, jit, reducing
from mcelbo_kernels.cpu.buffers import contiguous
from mcelbo_kernels.cpu.cell import Cell, evaluate
from mcelbo_kernels.decoded import IDENTITY, DecodedErrors, check_decoded
from mcelbo_kernels.numerics.lanes import constant, equal, select
from mcelbo_kernels.problem import Array


def decoded_errors(
    cell: str,
    y: Array,
    x: Array,
    weight: Array | None = None,
    upstream: Array | None = None,
    need_y: bool = False,
    need_x: bool = False,
    need_weight: bool = False,
) -> DecodedErrors:
    """Return T[b,i] = sum_j w[b,j] t(y[b,i,j], x[b,j]) and its vector-Jacobian product.

    A pixel of weight 0 is excluded by selection: it counts nothing, and has zero gradients in y and x, whatever x and y
    hold there. The gradient of the weight itself is t everywhere.

    Parameters
    ----------
    cell : str
        What t is: a name of `mcelbo_kernels.problem.CELLS`.
    y : ndarray, shape (B, c, m), float32 or float64
        Decoded samples, c for each datum.
    x : ndarray, shape (B, m)
    weight : ndarray, shape (B, m) or (1, m), optional
        By default 1.
    upstream : ndarray, shape (B, c), optional
        The factors of the vector-Jacobian product, by default 1.
    need_y, need_x, need_weight : bool
        Which gradients to return.

    Returns
    -------
    DecodedErrors

    Raises
    ------
    TypeError
        If the dtypes differ.
    ValueError
        If the shapes do not agree, or the cell is unknown.

    Examples
    --------
    >>> found = decoded_errors("squared_error", np.array([[[1.0, 2.0]]]), np.array([[3.0, 2.5]]), need_y=True)
    >>> found.errors, found.y
    (array([[4.25]]), array([[[-4., -1.]]]))
    """
    check_decoded(cell, y, x, weight, upstream)
    kind = Cell(IDENTITY, (), cell, True, False)
    batch, count, pixels = y.shape
    y, x = contiguous(y), contiguous(x)
    w = None if weight is None else contiguous(weight)
    factors = np.ones((batch, count), x.dtype) if upstream is None else contiguous(upstream.astype(x.dtype, copy=False))
    errors = np.empty((batch, count))
    dy = np.empty_like(y) if need_y else None
    dx = np.zeros((batch, pixels)) if need_x else None
    dw = None
    if need_weight:
        dw = np.zeros((batch if weight is None else len(weight), pixels))
    _reduce(kind, y, x, w, factors, errors, dy)
    if dx is not None:
        _add_dx(kind, y, x, w, factors, dx)
    if dw is not None:
        _add_dw(kind, y, x, factors, dw)
    return DecodedErrors(errors, dy, dx, dw)


# The rows are functions of one-dimensional arrays: indexed from 0 to size they run in vectors, as parts of a larger
# array they do not. Whatever is None is compiled away.


@inline
def _weighted(w, j, value):
    """Return w[j] * value, or 0 where w[j] is 0 whatever the value is: 0 * NaN is NaN."""
    if w is None:
        return value
    return select(equal(w[j], 0.0), constant(value, 0.0), w[j] * value)


@reducing
def _row(cell, y, x, w, factor, dy):  # y, x, w, dy (m,)
    """Return sum_j w t and store factor * w dt/dy in dy, in one pass over the pixels."""
    total = 0.0
    for j in range(y.size):
        t, slope, _ = evaluate(cell, y[j], x[j], 0.0)
        total += np.float64(_weighted(w, j, t))
        if dy is not None:
            dy[j] = _weighted(w, j, factor * slope)
    return total


@jit
def _add_row_dx(cell, y, x, w, factor, dx):  # all (m,)
    """Add factor * w dt/dx to dx."""
    for j in range(y.size):
        _, _, slope = evaluate(cell, y[j], x[j], 0.0)
        dx[j] += _weighted(w, j, factor * slope)


@jit
def _add_row_dw(cell, y, x, factor, dw):  # all (m,)
    """Add factor * t to dw."""
    for j in range(y.size):
        t, _, _ = evaluate(cell, y[j], x[j], 0.0)
        dw[j] += factor * t


@jit
def _reduce(cell, y, x, w, factors, errors, dy):  # y, dy (B, c, m), x (B, m), w (B|1, m)
    """Fill errors (B, c) and dy."""
    for b in range(y.shape[0]):
        w_b = None if w is None else w[b % w.shape[0]]
        for i in range(y.shape[1]):
            dy_bi = None if dy is None else dy[b, i]
            errors[b, i] = _row(cell, y[b, i], x[b], w_b, factors[b, i], dy_bi)


@jit
def _add_dx(cell, y, x, w, factors, dx):  # y (B, c, m), x, dx (B, m), w (B|1, m)
    """Add every sample's gradient to dx."""
    for b in range(y.shape[0]):
        w_b = None if w is None else w[b % w.shape[0]]
        for i in range(y.shape[1]):
            _add_row_dx(cell, y[b, i], x[b], w_b, factors[b, i], dx[b])


@jit
def _add_dw(cell, y, x, factors, dw):  # y (B, c, m), x (B, m), dw (B|1, m)
    """Add every sample's gradient to dw, whose one row is the batch's sum where the batch shares the weight."""
    for b in range(y.shape[0]):
        for i in range(y.shape[1]):
            _add_row_dw(cell, y[b, i], x[b], factors[b, i], dw[b % dw.shape[0]])
