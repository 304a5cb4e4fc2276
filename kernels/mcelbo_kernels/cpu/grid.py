"""The fused pass over the (sample, pixel) grid of a decoder with one affine layer: y = f(z W + c).

A row is one sample of one datum, q = b n + i, and rows are taken in chunks of a fixed length: nothing longer than a
chunk is stored. A chunk goes through two phases, each a number of tasks that any thread may take:

    row tasks      for every tile of rows:  z = mu + sigma eps,  a = z W + c,  t and da = dt/da,  T = sum t,
                   dz = da W^T
    panel tasks    for every panel of pixels, rows in order:  dW += z^T da,  dc += sum da  (and dx, dw)
                   and one for the rows' sums:  moments of T,  dmu += dz,  dlogvar += dz eps sigma / 2

The kernels compute with unit weight for every sample; the samples' weights g scale the left operand of the weight
product and the rows of dz. Sums over rows are in the problem's precision within a chunk and float64 across chunks. Who
took a task changes no bit.
"""

from __future__ import annotations

import numpy as np

from mcelbo_kernels._compile import inline, jit, part
from mcelbo_kernels.cpu.board import (
    DONE,
    PHASE,
    TASK,
    TICKET,
    atomic_add,
    atomic_load,
    close,
    open_phase,
    wait_for,
)
from mcelbo_kernels.cpu.cell import evaluate, has_gradient
from mcelbo_kernels.cpu.noise import copy, fill
from mcelbo_kernels.cpu.tile import (
    add_lane_sums,
    columns_of,
    inner_add,
    lanes_of,
    load_row,
    load_vector,
    outer_add,
    repeat_row,
    rows_of,
    store_tile,
    store_vector,
    width_of,
    zero_tile,
    zero_vector,
)
from mcelbo_kernels.numerics.lanes import constant, equal, select, sum_of_lanes

# A row's squared errors are summed in the problem's precision for so many panels, then added to a float64 total.
PANELS_OF_A_SUM = 64
# Long enough that taking a task costs nothing, short enough that a chunk has one for every thread.
TILES_OF_A_TASK = 8


@inline
def transform(mu, sigma, eps, z):
    for k in range(mu.size):
        z[k] = mu[k] + sigma[k] * eps[k]


# z[q] = mu[b] + sigma[b] eps[b, i],   q = b n + i
@jit
def draw(shape, inputs, upstream, first, start, stop, chunk):
    n, d = inputs.num_samples, inputs.mu.shape[1]
    row = start
    while row < stop:
        b, i = (first + row) // n, (first + row) % n
        run = min(n - i, stop - row)
        eps = chunk.eps[row : row + run]
        if not inputs.eps.size:
            fill(inputs.key, b, i, run, eps)
        for r in range(run):
            chunk.datum[row + r] = b
            if upstream.size:
                chunk.g[row + r] = upstream[b, i + r]
            if inputs.eps.size:
                copy(inputs.eps[b, i + r], eps[r])
            transform(inputs.mu[b], inputs.sigma[b], eps[r], chunk.z[row + r])
            chunk.z[row + r, d] = 1
        row += run
    # the last tile's missing rows are computed on zeros and the last datum's pixels, and left out of every sum
    for q in range(stop, -(-stop // rows_of(shape)) * rows_of(shape)):
        chunk.datum[q] = chunk.datum[stop - 1]
        for k in range(chunk.z.shape[1]):
            chunk.z[q, k] = 0


# a = z W + c over one tile of rows and one panel of pixels
@inline
def pre_activations(shape, inputs, scratch, p):
    d, width = inputs.mu.shape[1], width_of(shape)
    panel = p * (d + 1) * width
    a = repeat_row(shape, load_row(shape, inputs.panels, panel + d * width))
    for k in range(d):
        a = outer_add(a, scratch.column, k * rows_of(shape), load_row(shape, inputs.panels, panel + k * width))
    return a


# T[r] += sum_j w t(a, x),   da = w dt/da, dx = w dt/dx, dw = t in place of a and beside it
@inline
def evaluate_cells(shape, cell, inputs, chunk, scratch, tile, row, p, place):
    width, lanes = width_of(shape), lanes_of(shape)
    pixels = inputs.x.shape[1]
    for r in range(rows_of(shape)):
        b = chunk.datum[row + r]
        total = load_vector(shape, scratch.partial, r * lanes)
        for c in range(columns_of(shape)):
            pixel, offset = p * width + c * lanes, place + r * width + c * lanes
            x = load_vector(shape, inputs.x, b * pixels + pixel)
            t, da, dx = evaluate(cell, load_vector(shape, tile, offset), x, inputs.parameter)
            if chunk.dw.size:
                store_vector(chunk.dw, offset, t)
            if inputs.weight.size:
                w = load_vector(shape, inputs.weight, b * inputs.weight_stride + pixel)
                excluded, nothing = equal(w, 0.0), constant(w, 0.0)
                t = select(excluded, nothing, w * t)
                da = select(excluded, nothing, w * da)
                dx = select(excluded, nothing, w * dx)
            total = total + t
            if has_gradient(cell):
                store_vector(tile, offset, da)
                if chunk.dx.size:
                    store_vector(chunk.dx, offset, dx)
        store_vector(scratch.partial, r * lanes, total)


# errors[r] += partial[r], which starts again from zero
@inline
def flush_errors(shape, chunk, scratch, row):
    for r in range(rows_of(shape)):
        chunk.errors[row + r] += sum_of_lanes(load_vector(shape, scratch.partial, r * lanes_of(shape)))
        store_vector(scratch.partial, r * lanes_of(shape), zero_vector(shape))


# T[q] for the rows of a task, and da where there are gradients
@jit
def decode(shape, cell, inputs, start, stop, chunk, scratch):
    rows, width = rows_of(shape), width_of(shape)
    d, capacity, panels = inputs.mu.shape[1], chunk.datum.size, inputs.x.shape[1] // width
    tile = chunk.a if has_gradient(cell) else scratch.a
    for row in range(start, stop, rows):
        for r in range(rows):
            chunk.errors[row + r] = 0
            for k in range(d):
                scratch.column[k, r] = chunk.z[row + r, k]
        for p in range(panels):
            place = (p * capacity + row) * width if has_gradient(cell) else 0
            store_tile(tile, place, pre_activations(shape, inputs, scratch, p))
            evaluate_cells(shape, cell, inputs, chunk, scratch, tile, row, p, place)
            if p % PANELS_OF_A_SUM == PANELS_OF_A_SUM - 1 or p == panels - 1:
                flush_errors(shape, chunk, scratch, row)


# dz[q, k] = sum_j da[q, j] W[j, k]
@jit
def latent_gradient(shape, inputs, start, stop, chunk):
    width, lanes, columns = width_of(shape), lanes_of(shape), columns_of(shape)
    d, capacity, stride = inputs.mu.shape[1], chunk.datum.size, chunk.dz.shape[1]
    panels = inputs.x.shape[1] // width
    for row in range(start, stop, rows_of(shape)):
        for r in range(rows_of(shape)):
            for k in range(stride):
                chunk.dz[row + r, k] = 0
        for k in range(0, d, columns):
            for begin in range(0, panels, PANELS_OF_A_SUM):
                dz = zero_tile(shape)
                for p in range(begin, min(begin + PANELS_OF_A_SUM, panels)):
                    for c in range(columns):
                        a = (p * capacity + row) * width + c * lanes
                        w = (p * (d + 1) + k) * width + c * lanes
                        dz = inner_add(dz, chunk.a, a, width, inputs.panels, w, width)
                add_lane_sums(chunk.dz, row * stride + k, stride, dz)


# dW += sum_q g z^T da, and with the column of ones dc += sum_q g da, for one panel of pixels
@jit
def weight_gradient(shape, p, count, chunk, scratch, totals):
    rows, width, capacity, stride = rows_of(shape), width_of(shape), chunk.datum.size, chunk.z.shape[1]
    for k in range(0, stride, rows):
        dw = zero_tile(shape)
        for row in range(count):
            dw = outer_add(dw, chunk.z, row * stride + k, load_row(shape, chunk.a, (p * capacity + row) * width))
        store_tile(scratch.sums, 0, dw)
        for r in range(rows):
            for j in range(width):
                totals.panels[p, k + r, j] += scratch.sums[r, j]


# dx[b] += sum_q g dx[q],   dw[b] += sum_q g t[q],   for one panel of pixels
@jit
def pixel_gradient(shape, p, count, chunk, total, of_rows, shared):
    width = width_of(shape)
    for row in range(count):
        b, g = 0 if shared else chunk.datum[row], np.float64(chunk.g[row])
        for j in range(width):
            total[b, p * width + j] += g * of_rows[p, row, j]


# moments of T[b, i] about the first;   dmu[b] += g dz[q],   dlogvar[b] += g dz[q] eps sigma / 2
@jit
def reduce_rows(inputs, first, count, chunk, totals):
    d, n = inputs.mu.shape[1], inputs.num_samples
    for row in range(count):
        b, g, error = chunk.datum[row], np.float64(chunk.g[row]), chunk.errors[row]
        if totals.errors.size:
            totals.errors[first + row] = error
        if (first + row) % n == 0:
            totals.moments[b, 0] = error if np.isfinite(error) else 0.0
        shifted = error - totals.moments[b, 0]
        totals.moments[b, 1] += shifted
        totals.moments[b, 2] += shifted * shifted
        if totals.mu.size:
            for k in range(d):
                dz = g * chunk.dz[row, k]
                totals.mu[b, k] += dz
                totals.logvar[b, k] += dz * chunk.eps[row, k] * inputs.sigma[b, k] * 0.5


@part
def row_task(shape, cell, inputs, upstream, first, start, stop, chunk, scratch, totals):
    draw(shape, inputs, upstream, first, start, stop, chunk)
    decode(shape, cell, inputs, start, stop, chunk, scratch)
    if totals.mu.size:
        latent_gradient(shape, inputs, start, stop, chunk)
    if upstream.size:
        for row in range(start, stop):
            for k in range(chunk.z.shape[1]):
                chunk.z[row, k] *= chunk.g[row]


@part
def panel_task(shape, inputs, p, count, chunk, scratch, totals):
    if totals.panels.size:
        weight_gradient(shape, p, count, chunk, scratch, totals)
    if totals.x.size:
        pixel_gradient(shape, p, count, chunk, totals.x, chunk.dx, False)
    if totals.weight.size:
        pixel_gradient(shape, p, count, chunk, totals.weight, chunk.dw, inputs.weight_stride == 0)


@jit
def work(shape, cell, inputs, upstream, begin, end, chunk, scratch, totals, board, leads):
    """Take rows begin to end, chunk by chunk, and add up `totals`: all of it as leader, or what is left to take."""
    capacity, rows = chunk.datum.size, rows_of(shape) * TILES_OF_A_TASK
    phases = -(-(end - begin) // capacity) * 2
    panel_tasks = 1 + (inputs.x.shape[1] // width_of(shape) if has_gradient(cell) else 0)
    opened, taken = -1, False
    while True:
        ticket = atomic_add(board, TICKET, 1) if taken else atomic_load(board, TICKET)
        if ticket < 0:
            return
        phase, task = ticket >> PHASE, ticket & TASK
        first = begin + phase // 2 * capacity
        count = min(capacity, end - first)
        tasks = panel_tasks if phase % 2 else -(-count // rows)
        if task < tasks and not taken:
            # there seems to be something to take: whatever the next ticket says is then ours
            taken = True
            continue
        if task < tasks:
            if phase % 2 == 0:
                start, stop = task * rows, min((task + 1) * rows, count)
                row_task(shape, cell, inputs, upstream, first, start, stop, chunk, scratch, totals)
            elif task == 0:
                reduce_rows(inputs, first, count, chunk, totals)
            else:
                panel_task(shape, inputs, task - 1, count, chunk, scratch, totals)
            atomic_add(board, DONE, 1)
        elif leads:
            if opened >= 0:
                wait_for(board, tasks)
            opened += 1
            if opened == phases:
                close(board)
            else:
                open_phase(board, opened)
        taken = False
