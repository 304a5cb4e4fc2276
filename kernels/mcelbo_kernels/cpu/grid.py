"""The fused pass over the (sample, pixel) grid of a decoder of affine layers and activations.

A row is one sample of one datum, q = b n + i, and rows are taken in chunks of a fixed length: nothing longer than a
chunk is stored. A call goes through phases, each a number of tasks that any thread may take:

    packing         the layers' weights into panels, once
    for each chunk
        row tasks   for a few tiles of rows:  z = mu + sigma eps,  h and a layer by layer,  t and da = dt/da,
                    T = sum t,  da layer by layer back to dz
        panel tasks for every panel of every layer's outputs, rows in order:  dW^T += h^T da,  dc += sum da
                    (and dx, dw);  one for the rows' sums:  moments of T,  dmu += dz,  dlogvar += dz eps sigma / 2
    unpacking       the layers' gradients out of panels, once

The kernels compute with unit weight for every sample; the samples' weights g scale the left operand of the weight
products and the rows of dz. Sums over rows are in the problem's precision within a chunk and float64 across chunks. Who
took a task changes no bit.
"""

from __future__ import annotations

import numpy as np

from mcelbo_kernels._compile import inline, jit, linked, part
from mcelbo_kernels.cpu.board import (
    DONE,
    PHASE,
    RUN,
    TASK,
    THREADS,
    TICKET,
    atomic_add,
    atomic_load,
    close,
    open_phase,
    wait_for,
)
from mcelbo_kernels.cpu.buffers import INPUTS, LEFT, OUTPUTS, TOTAL, own_scratch
from mcelbo_kernels.cpu.cell import has_gradient, is_thin, is_whole
from mcelbo_kernels.cpu.layers import (
    ROWS_OF_A_SUM,
    append_one,
    backward,
    hidden_forward,
    last_forward,
    pixel_gradient,
    weight_gradient,
)
from mcelbo_kernels.cpu.noise import copy, fill
from mcelbo_kernels.cpu.packing import pack_inputs, pack_outputs, unpack_gradient
from mcelbo_kernels.cpu.quadratic import quadratic_forward, sum_deltas
from mcelbo_kernels.cpu.rest import rest
from mcelbo_kernels.cpu.shape import lanes_of, rows_of, width_of
from mcelbo_kernels.cpu.team import call_again
from mcelbo_kernels.cpu.thin import add_sums, thin_pass
from mcelbo_kernels.cpu.tile import load_vector, store_vector, zero_vector
from mcelbo_kernels.numerics.lanes import fma


@inline
def panels_of(shape, columns):
    return -(-columns // width_of(shape))


# z[q] = mu[b] + s[q],   s[q] = sigma[b] eps[b, i],   q = b n + i, for rows of one datum
@part
def place_samples(shape, inputs, b, row, run, chunk, scratch):
    d, width, lanes = inputs.mu.shape[1], width_of(shape), lanes_of(shape)
    z, whole = inputs.layers[0, LEFT], d // lanes * lanes
    for k in range(0, whole, lanes):
        mu, sigma = load_vector(shape, inputs.mu, b * d + k), load_vector(shape, inputs.sigma, b * d + k)
        place = (k // width * chunk.datum.size + row) * width + k % width
        for r in range(run):
            spread = sigma * load_vector(shape, scratch.eps, r * d + k)
            store_vector(chunk.spread, place + r * width, spread)
            store_vector(chunk.values, z + place + r * width, mu + spread)
    for k in range(whole, d):
        mu, sigma, panel = inputs.mu[b, k], inputs.sigma[b, k], k // width
        place = (panel * chunk.datum.size + row) * width + k % width
        for r in range(run):
            spread = sigma * scratch.eps[r, k]
            chunk.spread[panel, row + r, k % width] = spread
            chunk.values[z + place + r * width] = mu + spread


# the samples of a task's rows
@linked
def draw(shape, inputs, first, start, stop, chunk, scratch):
    n, d, width = inputs.num_samples, inputs.mu.shape[1], width_of(shape)
    stride = chunk.datum.size * width
    padding = -(-stop // rows_of(shape)) * rows_of(shape) - stop
    row = start
    while row < stop:
        b, i = (first + row) // n, (first + row) % n
        run = min(n - i, stop - row)
        if inputs.eps.size:
            for r in range(run):
                copy(inputs.eps[b, i + r], scratch.eps[r])
        else:
            fill(inputs.key, b, i, run, scratch.eps)
        for r in range(run):
            chunk.datum[row + r] = b
        if inputs.upstream.size:
            for r in range(run):
                chunk.g[row + r] = inputs.upstream[b, i + r]
        place_samples(shape, inputs, b, row, run, chunk, scratch)
        row += run
    # the last tile's missing rows are computed on zeros and the last datum's pixels, and left out of every sum
    for q in range(stop, stop + padding):
        chunk.datum[q] = chunk.datum[stop - 1]
        for k in range(d):
            chunk.values[inputs.layers[0, LEFT] + k // width * stride + q * width + k % width] = 0
    append_one(shape, inputs.layers[0], start, (stop + padding - start) // rows_of(shape), chunk)


# moments of T[b, i] about the first, for rows of one datum
@part
def add_errors(inputs, b, first, start, stop, chunk, totals):
    if totals.errors.size:
        for row in range(start, stop):
            totals.errors[first + row] = chunk.errors[row]
    if (first + start) % inputs.num_samples == 0:
        totals.moments[b, 0] = chunk.errors[start] if np.isfinite(chunk.errors[start]) else 0.0
    shift, total, squares = totals.moments[b, 0], totals.moments[b, 1], totals.moments[b, 2]
    for row in range(start, stop):
        shifted = chunk.errors[row] - shift
        total += shifted
        squares += shifted * shifted
    totals.moments[b, 1], totals.moments[b, 2] = total, squares


# mean[b] = shift + s / n,   squares[b] = s2 - s^2 / n, which rounding must not leave below zero
@jit
def finish_moments(sums, n, mean, squares):
    for b in range(sums.shape[0]):
        about = sums[b, 1] / n
        square = sums[b, 2] - sums[b, 1] * about
        mean[b] = sums[b, 0] + about
        squares[b] = 0.0 if square < 0 else square


# dmu[b] += sum_q g dz[q],   dlogvar[b] += sum_q g dz[q] s[q] / 2,   for the rows of one datum
@part
def add_latent_gradient(shape, b, start, stop, chunk, scratch, totals):
    d, width, lanes = totals.mu.shape[1], width_of(shape), lanes_of(shape)
    for begin in range(0, d, lanes):
        panel, place = begin // width * chunk.datum.size * width, begin % width
        mean = variance = zero_vector(shape)
        for row in range(start, stop):
            at = panel + row * width + place
            dz = load_vector(shape, chunk.dz, at) * chunk.g[row]
            mean = mean + dz
            variance = fma(dz, load_vector(shape, chunk.spread, at), variance)
        store_vector(scratch.sums, 0, mean)
        store_vector(scratch.sums, lanes, variance)
        for k in range(min(lanes, d - begin)):
            totals.mu[b, begin + k] += scratch.sums[0, 0, k]
            totals.logvar[b, begin + k] += scratch.sums[0, 0, lanes + k] * 0.5


@linked
def reduce_rows(shape, inputs, first, count, chunk, scratch, totals):
    row = 0
    while row < count:
        b, more = chunk.datum[row], inputs.num_samples - (first + row) % inputs.num_samples
        stop = min(count, row + more, row + ROWS_OF_A_SUM)
        add_errors(inputs, b, first, row, stop, chunk, totals)
        if totals.mu.size:
            add_latent_gradient(shape, b, row, stop, chunk, scratch, totals)
        row = stop


# h *= g, once the rows' own gradients are done with it
@part
def scale_rows(shape, inputs, start, stop, chunk):
    width = width_of(shape)
    for index in range(inputs.layers.shape[0]):
        layer = inputs.layers[index]
        for p in range(panels_of(shape, layer[INPUTS] + 1)):
            for row in range(start, stop):
                place = layer[LEFT] + (p * chunk.datum.size + row) * width
                for k in range(width):
                    chunk.values[place + k] *= chunk.g[row]


@part
def row_task(shape, cell, inputs, task, first, start, stop, chunk, scratch):
    draw(shape, inputs, first, start, stop, chunk, scratch)
    tiles, last = -(-(stop - start) // rows_of(shape)), inputs.layers.shape[0] - 1
    for index in range(last):
        hidden_forward(shape, cell, inputs, index, start, tiles, chunk, scratch)
    last_forward(shape, cell, inputs, start, tiles, chunk, scratch)
    quadratic_forward(shape, cell, inputs, start, tiles, chunk, scratch)
    thin_pass(shape, cell, inputs, start, stop, chunk, scratch, chunk.sums[task])
    if has_gradient(cell):
        for index in range(last - is_whole(cell), inputs.lowest, -1):
            backward(shape, cell, inputs, index, start, tiles, chunk, scratch)
        if inputs.upstream.size and not is_thin(cell):
            scale_rows(shape, inputs, start, stop, chunk)


@part
def panel_task(shape, cell, inputs, task, rows, first, count, chunk, scratch, totals):
    for index in range(inputs.layers.shape[0]):
        layer = inputs.layers[index]
        panels = panels_of(shape, layer[OUTPUTS])
        if task < panels:
            if layer[TOTAL] >= 0:
                weight_gradient(shape, cell, layer, task, first, count, chunk, scratch, totals)
                add_sums(shape, cell, layer, task, first, -(-count // rows), chunk, totals)
            if index == inputs.layers.shape[0] - 1:
                if totals.x.size:
                    sum_deltas(shape, cell, inputs, layer, task, first, count, chunk, scratch, totals.x)
                    pixel_gradient(shape, cell, task, count, chunk, totals.x, chunk.dx, False)
                if totals.weight.size:
                    pixel_gradient(shape, cell, task, count, chunk, totals.weight, chunk.dw, inputs.weight_stride == 0)
            return
        task -= panels


@part
def pack_task(shape, cell, inputs, task, chunk):
    for index in range(inputs.layers.shape[0]):
        layer = inputs.layers[index]
        panels = panels_of(shape, layer[OUTPUTS])
        if task < panels:
            padding = inputs.padding if index == inputs.layers.shape[0] - 1 else 0.0
            pack_outputs(shape, layer, task, chunk.weights, padding)
            return
        task -= panels
        passed = has_gradient(cell) and inputs.lowest < index < inputs.layers.shape[0] - is_whole(cell)
        panels = panels_of(shape, layer[INPUTS]) if passed else 0
        if task < panels:
            pack_inputs(shape, cell, layer, task, chunk.weights)
            return
        task -= panels


@part
def unpack_task(shape, cell, inputs, task, chunk, totals):
    for index in range(inputs.layers.shape[0]):
        layer = inputs.layers[index]
        panels = panels_of(shape, layer[OUTPUTS])
        if task < panels:
            if layer[TOTAL] >= 0:
                unpack_gradient(shape, cell, layer, task, chunk.weights, totals, inputs.scale)
            return
        task -= panels


# panels of all layers' outputs, and with `both` of those inputs that gradients pass
@part
def count_panels(shape, cell, inputs, both):
    count = 0
    for index in range(inputs.layers.shape[0]):
        count += panels_of(shape, inputs.layers[index, OUTPUTS])
        if both and inputs.lowest < index < inputs.layers.shape[0] - is_whole(cell):
            count += panels_of(shape, inputs.layers[index, INPUTS])
    return count


@jit
def work(shape, cell, inputs, begin, end, chunk, scratches, totals, board, number):
    """Take rows begin to end, chunk by chunk, and add up `totals`: all of it as number 0, or what is left to take."""
    if number < 0:
        call_again(board[RUN], board[THREADS])
        return
    scratch = own_scratch(scratches, number)
    capacity, rows = chunk.datum.size, rows_of(shape) * scratch.partial.shape[0]
    total = inputs.mu.shape[0] * inputs.num_samples
    packing = count_panels(shape, cell, inputs, has_gradient(cell)) if begin == 0 else 0
    panels = count_panels(shape, cell, inputs, False) if has_gradient(cell) else 0
    unpacking = panels if end == total else 0
    last = -(-(end - begin) // capacity) * 2 + 1
    opened, taken, turns = -1, False, 0
    while True:
        ticket = atomic_add(board, TICKET, 1) if taken else atomic_load(board, TICKET)
        if ticket < 0:
            return
        phase, task = ticket >> PHASE, ticket & TASK
        first = begin + (phase - 1) // 2 * capacity
        count = min(capacity, end - first)
        if phase == 0:
            tasks = packing
        elif phase == last:
            tasks = unpacking
        else:
            tasks = -(-count // rows) if phase % 2 else 1 + panels
        if task < tasks and not taken:
            # there seems to be something to take: whatever the next ticket says is then ours
            taken, turns = True, 0
            continue
        if task < tasks:
            if phase == 0:
                pack_task(shape, cell, inputs, task, chunk)
            elif phase == last:
                unpack_task(shape, cell, inputs, task, chunk, totals)
            elif phase % 2:
                start, stop = task * rows, min((task + 1) * rows, count)
                row_task(shape, cell, inputs, task, first, start, stop, chunk, scratch)
            elif task == 0:
                reduce_rows(shape, inputs, first, count, chunk, scratch, totals)
            else:
                panel_task(shape, cell, inputs, task - 1, rows, first, count, chunk, scratch, totals)
            atomic_add(board, DONE, 1)
        elif number == 0:
            if opened >= 0:
                wait_for(board, tasks)
            opened += 1
            if opened > last:
                close(board)
            else:
                open_phase(board, opened)
        else:
            rest(turns)
            turns += 1
        taken = False
