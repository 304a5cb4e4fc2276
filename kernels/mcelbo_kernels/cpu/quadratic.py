"""The last layer of a squared error without pixels: a quadratic form of the last hidden layer.

Of y = h W^T + c and a centre h0 with r0 = x - h0 W^T - c, delta = h - h0, G = W^T W and a = r0 W:

    T = |r0|^2 + t,   t = delta G delta^T - 2 delta a = delta (u - 2 a),   u = delta G,   dt/ddelta = 2 (u - a)

A pass over it is one over a decoder whose last layer is G, from H to H: delta is the layer's input, `Inputs.x` holds a,
and the gradient of G is S = sum_q delta^T delta, of which the half up to the diagonal is computed.
"""

from __future__ import annotations

from mcelbo_kernels._compile import inline, jit, linked, part
from mcelbo_kernels.cpu.buffers import INPUTS, LEFT, OUTPUT, PANELS
from mcelbo_kernels.cpu.cell import QUADRATIC, activate, has_gradient, only_where
from mcelbo_kernels.cpu.layers import PANELS_OF_A_SUM, ROWS_OF_A_SUM, add_product, flush_errors
from mcelbo_kernels.cpu.shape import lanes_of, rows_of, width_of
from mcelbo_kernels.cpu.tile import accumulate, load_vector, row_sums, store_vector, zero_tile, zero_vector

SQUARE = 16


# delta = h - h0
@part
def subtract_centre(shape, inputs, start, tiles, chunk):
    width, lanes = width_of(shape), lanes_of(shape)
    last = inputs.layers.shape[0] - 1
    for p in range(inputs.x.shape[1] // width):
        for row in range(start, start + tiles * rows_of(shape)):
            place = inputs.layers[last, LEFT] + (p * chunk.datum.size + row) * width
            centre = chunk.datum[row] * inputs.x.shape[1] + p * width
            for c in range(0, width, lanes):
                delta = load_vector(shape, chunk.values, place + c) - load_vector(shape, inputs.centre, centre + c)
                store_vector(chunk.values, place + c, delta)


# t = delta (u - 2 a);   dh = 2 (u - a), times the slope of the activation before it, or dz
@inline
def quadratic_vector(u, r, c, shape, cell, inputs, chunk, row, p, place):
    width, lanes, last = width_of(shape), lanes_of(shape), inputs.layers.shape[0] - 1
    at = place + r * width + c * lanes
    a = load_vector(shape, inputs.x, chunk.datum[row + r] * inputs.x.shape[1] + p * width + c * lanes)
    half = u - a
    if has_gradient(cell):
        if last == 0:
            store_vector(chunk.dz, at, half + half)
        else:
            slope = inputs.layers[last - 1, OUTPUT] + at
            store_vector(chunk.values, slope, (half + half) * load_vector(shape, chunk.values, slope))
    return load_vector(shape, chunk.values, inputs.layers[last, LEFT] + at) * (half - a)


# t[q] for the rows of a task
@only_where(lambda cell: cell.likelihood == QUADRATIC)
@linked
def quadratic_forward(shape, cell, inputs, start, tiles, chunk, scratch):
    layer = inputs.layers[inputs.layers.shape[0] - 1]
    rows, width, lanes, capacity = rows_of(shape), width_of(shape), lanes_of(shape), chunk.datum.size
    count, panels = layer[INPUTS], inputs.x.shape[1] // width
    if inputs.centre.size:
        subtract_centre(shape, inputs, start, tiles, chunk)
    for row in range(start, start + tiles * rows):
        chunk.errors[row] = 0
    for p in range(panels):
        panel = layer[PANELS] + p * (count + 1) * width
        for t in range(tiles):
            row = start + t * rows
            u, left = zero_tile(shape), layer[LEFT] + row * width
            u = add_product(shape, u, chunk.values, left, capacity * width, count, chunk.weights, panel)
            place = (p * capacity + row) * width
            sums = row_sums(quadratic_vector, u, (shape, cell, inputs, chunk, row, p, place))
            accumulate(scratch.partial, t * rows * lanes, sums)
        if p % PANELS_OF_A_SUM == PANELS_OF_A_SUM - 1 or p == panels - 1:
            flush_errors(shape, start, tiles, chunk, scratch)


# v[b] += sum_q delta[q], for one panel of columns
@only_where(lambda cell: cell.likelihood == QUADRATIC)
@linked
def sum_deltas(shape, cell, inputs, layer, p, first, count, chunk, scratch, total):
    width, lanes, n = width_of(shape), lanes_of(shape), inputs.num_samples
    left, row = layer[LEFT] + p * chunk.datum.size * width, 0
    while row < count:
        stop = min(count, row + ROWS_OF_A_SUM, row + n - (first + row) % n)
        for c in range(0, width, lanes):
            sums = zero_vector(shape)
            for q in range(row, stop):
                sums = sums + load_vector(shape, chunk.values, left + q * width + c)
            store_vector(scratch.sums, c, sums)
        for j in range(width):
            total[chunk.datum[row], p * width + j] += scratch.sums[0, 0, j]
        row = stop


# f(a), in place
@jit
def activate_in_place(cell, a, parameter):
    for i in range(a.size):
        a[i] = activate(cell, 0, a[i], parameter)[0]


# s[j, i] = s[i, j] = factor s[i, j] for j <= i, in place; in squares, of whose rows all columns stay in the cache
@jit
def mirrored(s, factor):
    size = len(s)
    for first in range(0, size, SQUARE):
        for column in range(0, first + 1, SQUARE):
            for i in range(first, min(size, first + SQUARE)):
                for j in range(column, min(i + 1, column + SQUARE)):
                    s[i, j] = s[j, i] = factor * s[i, j]
    return s
