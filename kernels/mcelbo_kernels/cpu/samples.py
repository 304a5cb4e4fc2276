"""The rows of a chunk, one a sample: drawn before a pass goes over them, and summed after it.

z[q] = mu[b] + sigma[b] eps[b, i],   q = b n + i
moments of T,   dmu[b] += g dz[q],   dlogvar[b] += g dz[q] eps sigma / 2
"""

from __future__ import annotations

import numpy as np

from mcelbo_kernels._compile import jit, linked, part
from mcelbo_kernels.cpu.buffers import INPUTS, LEFT
from mcelbo_kernels.cpu.layers import ROWS_OF_A_SUM, append_one, panels_of
from mcelbo_kernels.cpu.noise import copy, fill
from mcelbo_kernels.cpu.shape import lanes_of, rows_of, width_of
from mcelbo_kernels.cpu.tile import load_vector, store_vector, zero_vector
from mcelbo_kernels.numerics.lanes import fma


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
