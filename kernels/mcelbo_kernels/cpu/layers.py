"""The products of a pass, layer by layer, over the tiles of one task and over the panels of one weight gradient.

forward     a = h W^T + c,  then h' = f(a) and f'(a);  of the last layer t and da = dt/da
backward    dh = da W,  da of the layer before = dh f'(a);  of the first layer dz
weights     dW^T = h^T da,  dc = sum da, rows in order
"""

from __future__ import annotations

import numpy as np

from mcelbo_kernels._compile import inline, linked, part
from mcelbo_kernels.cpu.buffers import ACTIVATION, INPUTS, LEFT, OUTPUT, OUTPUTS, PANELS, TOTAL, TRANSPOSED
from mcelbo_kernels.cpu.cell import QUADRATIC, activate, evaluate, has_gradient, is_weighted, only_where
from mcelbo_kernels.cpu.shape import lanes_of, rows_of, steps_of, width_of
from mcelbo_kernels.cpu.tile import (
    accumulate,
    columns_add,
    columns_apart,
    filled_from,
    load_row,
    load_tile,
    load_vector,
    map_tile,
    outer_add,
    repeat_row,
    row_sums,
    rows_add,
    rows_apart,
    store_tile,
    store_vector,
    zero_tile,
    zero_vector,
)
from mcelbo_kernels.numerics.lanes import constant, equal, select, sum_of_lanes

# A row's squared errors are summed in the problem's precision for so many panels, then added to a float64 total.
PANELS_OF_A_SUM = 64
# A sum over so many pixels is finished before it is added to those before it: of a million little would be left.
COLUMNS_OF_A_SUM = 1024
# Likewise one over so many rows, before it is added to a float64 total.
ROWS_OF_A_SUM = 512


@inline
def panels_of(shape, columns):
    return -(-columns // width_of(shape))


# tile + sum_k left[:, k] panel[k] over `count` columns
@part
def add_product(shape, tile, left, start, stride, count, panels, panel):
    width, steps = width_of(shape), steps_of(shape)
    apart, whole = rows_apart(shape, width), count // width * width
    for k in range(0, whole, width):
        for step in range(0, width, steps):
            tile = columns_add(shape, tile, left, start + step, apart, panels, panel + (k + step) * width)
        start += stride
    for k in range(count - whole):
        tile = outer_add(shape, tile, left, start + k, apart, panels, panel + (whole + k) * width)
    return tile


# the column behind a layer's input, by which its bias is multiplied
@part
def append_one(shape, layer, start, tiles, chunk):
    width, column = width_of(shape), layer[INPUTS]
    place = layer[LEFT] + (column // width * chunk.datum.size + start) * width + column % width
    for row in range(tiles * rows_of(shape)):
        chunk.values[place + row * width] = 1


@inline
def hidden_vector(a, r, c, cell, chunk, which, parameter, place, slope, lanes, width):
    h, derivative = activate(cell, which, a, parameter)
    if has_gradient(cell):
        store_vector(chunk.values, slope + r * width + c * lanes, derivative)
    store_vector(chunk.values, place + r * width + c * lanes, h)
    return h


# h' = f(h W^T + c), f'(a)
@only_where(lambda cell: cell.hidden)
@linked
def hidden_forward(shape, cell, inputs, index, start, tiles, chunk, scratch):
    layer, after = inputs.layers[index], inputs.layers[index + 1]
    rows, width, lanes, capacity = rows_of(shape), width_of(shape), lanes_of(shape), chunk.datum.size
    count, stride, parameter = layer[INPUTS], capacity * width, inputs.parameters[index]
    for p in range(panels_of(shape, layer[OUTPUTS])):
        panel = layer[PANELS] + p * (count + 1) * width
        for t in range(tiles):
            row = start + t * rows
            a = repeat_row(shape, load_row(shape, chunk.weights, panel + count * width))
            a = add_product(shape, a, chunk.values, layer[LEFT] + row * width, stride, count, chunk.weights, panel)
            place = (p * capacity + row) * width
            target, slope = after[LEFT] + place, layer[OUTPUT] + place
            map_tile(hidden_vector, a, (cell, chunk, layer[ACTIVATION], parameter, target, slope, lanes, width))
    append_one(shape, after, start, tiles, chunk)


# t = w cell(a, x),   da = w dt/da,   dx = w dt/dx,   dw = cell(a, x)
@inline
def pixels_of(a, shape, cell, inputs, b, column):
    x = load_vector(shape, inputs.x, b * inputs.x.shape[1] + column)
    t, da, dx = evaluate(cell, a, x, inputs.parameters[inputs.parameters.size - 1])
    dw = t
    if is_weighted(cell) and inputs.weight.size:
        w = load_vector(shape, inputs.weight, b * inputs.weight_stride + column)
        excluded, nothing = equal(w, 0.0), constant(w, 0.0)
        t = select(excluded, nothing, w * t)
        da = select(excluded, nothing, w * da)
        dx = select(excluded, nothing, w * dx)
    return t, da, dx, dw


@inline
def cell_vector(a, r, c, shape, cell, inputs, chunk, row, pixel, place, beside):
    at = r * width_of(shape) + c * lanes_of(shape)
    t, da, dx, dw = pixels_of(a, shape, cell, inputs, chunk.datum[row + r], pixel + c * lanes_of(shape))
    if is_weighted(cell):
        if chunk.dw.size:
            store_vector(chunk.dw, beside + at, dw)
        if chunk.dx.size:
            store_vector(chunk.dx, beside + at, dx)
    if has_gradient(cell):
        store_vector(chunk.values, place + at, da)
    return t


# a, with what adds nothing in the columns behind the pixels: 0 times an infinite h would be NaN there
@part
def without_padding(shape, inputs, a, p):
    pixels = inputs.layers[inputs.layers.shape[0] - 1, OUTPUTS] - p * width_of(shape)
    if pixels < width_of(shape):
        a = filled_from(a, pixels, inputs.padding)
    return a


# errors[row] += partial[r], which starts again from zero
@part
def flush_errors(shape, start, tiles, chunk, scratch):
    for r in range(tiles * rows_of(shape)):
        chunk.errors[start + r] += sum_of_lanes(load_vector(shape, scratch.partial, r * lanes_of(shape)))
        store_vector(scratch.partial, r * lanes_of(shape), zero_vector(shape))


# T[q] for the rows of a task, and da where there are gradients
@only_where(lambda cell: cell.likelihood != QUADRATIC and not cell.thin)
@linked
def last_forward(shape, cell, inputs, start, tiles, chunk, scratch):
    layer = inputs.layers[inputs.layers.shape[0] - 1]
    rows, width, lanes, capacity = rows_of(shape), width_of(shape), lanes_of(shape), chunk.datum.size
    count, stride, panels = layer[INPUTS], capacity * width, inputs.x.shape[1] // width
    for row in range(start, start + tiles * rows):
        chunk.errors[row] = 0
    for p in range(panels):
        panel = layer[PANELS] + p * (count + 1) * width
        for t in range(tiles):
            row = start + t * rows
            a = repeat_row(shape, load_row(shape, chunk.weights, panel + count * width))
            a = add_product(shape, a, chunk.values, layer[LEFT] + row * width, stride, count, chunk.weights, panel)
            a = without_padding(shape, inputs, a, p)
            beside = (p * capacity + row) * width
            errors = row_sums(
                cell_vector, a, (shape, cell, inputs, chunk, row, p * width, layer[OUTPUT] + beside, beside)
            )
            accumulate(scratch.partial, t * rows * lanes, errors)
        if p % PANELS_OF_A_SUM == PANELS_OF_A_SUM - 1 or p == panels - 1:
            flush_errors(shape, start, tiles, chunk, scratch)


@inline
def slope_vector(dh, r, c, shape, chunk, place):
    at = place + r * width_of(shape) + c * lanes_of(shape)
    da = dh * load_vector(shape, chunk.values, at)
    store_vector(chunk.values, at, da)
    return da


# dh = da W;   da of the layer before, in place of its slope, or dz
@only_where(lambda cell: cell.gradient and not cell.thin)
@linked
def backward(shape, cell, inputs, index, start, tiles, chunk, scratch):
    layer = inputs.layers[index]
    rows, width, capacity = rows_of(shape), width_of(shape), chunk.datum.size
    count, stride = layer[OUTPUTS], capacity * width
    for p in range(panels_of(shape, layer[INPUTS])):
        panel = layer[TRANSPOSED] + p * count * width
        for t in range(tiles):
            row = start + t * rows
            left, first = layer[OUTPUT] + row * width, min(count, COLUMNS_OF_A_SUM)
            dh = add_product(shape, zero_tile(shape), chunk.values, left, stride, first, chunk.weights, panel)
            for begin in range(first, count, COLUMNS_OF_A_SUM):
                store_tile(scratch.sums, 0, dh)
                more, at = min(count - begin, COLUMNS_OF_A_SUM), left + begin // width * stride
                dh = add_product(
                    shape, zero_tile(shape), chunk.values, at, stride, more, chunk.weights, panel + begin * width
                )
                accumulate(scratch.sums, 0, dh)
                dh = load_tile(shape, scratch.sums, 0)
            place = (p * capacity + row) * width
            if index == 0:
                store_tile(chunk.dz, place, dh)
            else:
                map_tile(slope_vector, dh, (shape, chunk, inputs.layers[index - 1][OUTPUT] + place))


# dW^T += sum_q g h^T da, and with the column of ones dc += sum_q g da, for one panel of outputs
@only_where(lambda cell: cell.gradient and not cell.thin)
@linked
def weight_gradient(shape, cell, layer, p, first, count, chunk, scratch, totals):
    for begin in range(0, count, ROWS_OF_A_SUM):
        end = min(begin + ROWS_OF_A_SUM, count)
        add_weight_gradient(shape, layer, p, begin, end, first + begin > 0, chunk, scratch, totals)


# the same for some rows of the chunk, which start the sums or add to them
@part
def add_weight_gradient(shape, layer, p, begin, stop, started, chunk, scratch, totals):
    rows, width, stride = rows_of(shape), width_of(shape), chunk.datum.size * width_of(shape)
    inputs, right = layer[INPUTS], layer[OUTPUT] + p * stride
    total = layer[TOTAL] + p * (inputs + 1) * width
    # the gradient of a quadratic layer is symmetric: complete with its columns up to the diagonal
    end = min(inputs, (p + 1) * width) if layer[OUTPUT] == layer[LEFT] else inputs + 1
    whole = stop - (stop - begin) % steps_of(shape)
    for k in range(0, end, rows):
        apart = columns_apart(shape, k, inputs, stride)
        dw = zero_tile(shape)
        for row in range(begin, whole, steps_of(shape)):
            at = row * width
            dw = rows_add(shape, dw, chunk.values, layer[LEFT] + at, apart, chunk.values, right + at)
        for row in range(whole, stop):
            at = row * width
            dw = outer_add(shape, dw, chunk.values, layer[LEFT] + at, apart, chunk.values, right + at)
        store_tile(scratch.sums, 0, dw)
        for r in range(min(rows, end - k)):
            place = total + (k + r) * width
            for j in range(width):
                before = totals.layers[place + j] if started else 0.0
                totals.layers[place + j] = before + scratch.sums[0, r, j]


# dx[b] += sum_q g dx[q],   dw[b] += sum_q g t[q],   for one panel of pixels
@only_where(lambda cell: cell.gradient and cell.weighted)
@linked
def pixel_gradient(shape, cell, p, count, chunk, total, of_rows, shared):
    width = width_of(shape)
    for row in range(count):
        b, g = 0 if shared else chunk.datum[row], np.float64(chunk.g[row])
        for j in range(width):
            total[b, p * width + j] += g * of_rows[p, row, j]
