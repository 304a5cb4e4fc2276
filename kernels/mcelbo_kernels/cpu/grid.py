"""The fused pass over the (sample, pixel) grid of a decoder with one affine layer: y = f(z W + c).

A row is one sample of one datum, q = b n + i, and rows are taken in chunks of a fixed length. Nothing longer than a
chunk is stored. Within a chunk:

    draw            eps, z = mu + sigma eps
    phase one       for every tile of rows:  a = z W + c, then t and da = dt/da, T = sum t
    latent          for every tile of rows:  dz = da W^T
    phase two       for every panel of pixels:  dW += z^T da, dc += sum da (and dx, dw), rows in order
    reduce          moments of T;  dmu += dz,  dlogvar += dz eps sigma / 2

The kernels compute with unit weight for every sample; the samples' weights g scale the left operand of the weight
product and the rows of dz. Sums over rows are float32 within a chunk and float64 across chunks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mcelbo_kernels._compile import inline, jit
from mcelbo_kernels.cpu.cell import evaluate, has_gradient
from mcelbo_kernels.cpu.noise import fill
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

Array = NDArray[Any]

# A row's squared errors are summed in float32 for so many panels, then added to a float64 total.
PANELS_OF_A_SUM = 64


class Inputs(NamedTuple):
    """What a pass reads; pixels are padded to M, a whole number of panels, d latents, P panels of `width` pixels."""

    x: Array  # (B, M)
    weight: Array  # (B or 1, M), or empty where nothing is weighted
    weight_stride: int  # M, or 0 where the batch shares the weights
    mu: Array  # (B, d)
    sigma: Array  # (B, d)
    panels: Array  # (P, d + 1, width): for each panel the d rows of W^T, then the bias
    parameter: Any  # the activation's
    eps: Array  # (B, n, d), or empty
    key: tuple[int, bool, int, int]  # seed, antithetic, datum_offset, sample_offset
    num_samples: int


class Chunk(NamedTuple):
    """The buffers of one chunk of up to `capacity` rows; those that nobody needs are empty."""

    datum: Array  # (capacity,) the datum that a row belongs to
    g: Array  # (capacity,) the weight of a sample
    eps: Array  # (capacity, d)
    z: Array  # (capacity, D): z, then 1 for the bias, then zeros up to a whole number of tile rows
    column: Array  # (d, rows): one tile's z, latent by latent
    a: Array  # (P, capacity, width): pre-activations, then da in their place; one tile where no gradient is needed
    dx: Array  # (P, capacity, width)
    dw: Array  # (P, capacity, width)
    partial: Array  # (rows, lanes): one tile's errors, lane by lane
    errors: Array  # (capacity,) float64
    dz: Array  # (capacity, d + 1): the last column is padding


class Totals(NamedTuple):
    """The sums of a pass in float64; those that nobody needs are empty."""

    errors: Array  # (B n,) in the problem's precision
    moments: Array  # (B, 3): shift, sum of T - shift, sum of (T - shift)^2
    panels: Array  # (P, D, width)
    mu: Array  # (B, d)
    logvar: Array  # (B, d)
    x: Array  # (B, M)
    weight: Array  # (B or 1, M)


# z[q] = mu[b] + sigma[b] eps[b, i],   q = b n + i
@jit
def draw(shape, inputs, upstream, first, count, chunk):
    n, d = inputs.num_samples, inputs.mu.shape[1]
    seed, antithetic, datum_offset, sample_offset = inputs.key
    rows = rows_of(shape)
    row = 0
    while row < count:
        b, i = (first + row) // n, (first + row) % n
        run = min(n - i, count - row)
        eps = chunk.eps[row : row + run]
        if not inputs.eps.size:
            fill(seed, antithetic, datum_offset + b, sample_offset + i, run, eps)
        for r in range(run):
            chunk.datum[row + r] = b
            if upstream.size:
                chunk.g[row + r] = upstream[b, i + r]
            for k in range(d):
                if inputs.eps.size:
                    eps[r, k] = inputs.eps[b, i + r, k]
                chunk.z[row + r, k] = inputs.mu[b, k] + inputs.sigma[b, k] * eps[r, k]
            chunk.z[row + r, d] = 1
        row += run
    # the last tile's missing rows are computed on zeros and the last datum's pixels, and left out of every sum
    for q in range(count, -(-count // rows) * rows):
        chunk.datum[q] = chunk.datum[count - 1]
        for k in range(chunk.z.shape[1]):
            chunk.z[q, k] = 0


# a = z W + c over one tile of rows and one panel of pixels
@inline
def pre_activations(shape, inputs, chunk, p):
    d = inputs.mu.shape[1]
    panel = p * (d + 1) * width_of(shape)
    a = repeat_row(shape, load_row(shape, inputs.panels, panel + d * width_of(shape)))
    for k in range(d):
        a = outer_add(a, chunk.column, k * rows_of(shape), load_row(shape, inputs.panels, panel + k * width_of(shape)))
    return a


# T[r] += sum_j w t(a, x),   da = w dt/da, dx = w dt/dx, dw = t in place of a and beside it
@inline
def evaluate_cells(shape, cell, inputs, chunk, row, p, place):
    width, lanes = width_of(shape), lanes_of(shape)
    pixels = inputs.x.shape[1]
    for r in range(rows_of(shape)):
        b = chunk.datum[row + r]
        total = load_vector(shape, chunk.partial, r * lanes)
        for c in range(columns_of(shape)):
            pixel, offset = p * width + c * lanes, place + r * width + c * lanes
            x = load_vector(shape, inputs.x, b * pixels + pixel)
            t, da, dx = evaluate(cell, load_vector(shape, chunk.a, offset), x, inputs.parameter)
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
                store_vector(chunk.a, offset, da)
                if chunk.dx.size:
                    store_vector(chunk.dx, offset, dx)
        store_vector(chunk.partial, r * lanes, total)


# errors[r] += partial[r], which starts again from zero
@inline
def flush_errors(shape, chunk, row):
    for r in range(rows_of(shape)):
        chunk.errors[row + r] += sum_of_lanes(load_vector(shape, chunk.partial, r * lanes_of(shape)))
        store_vector(chunk.partial, r * lanes_of(shape), zero_vector(shape))


@jit
def phase_one(shape, cell, inputs, chunk, count):
    rows, width = rows_of(shape), width_of(shape)
    d, capacity, panels = inputs.mu.shape[1], chunk.datum.size, inputs.x.shape[1] // width
    for row in range(0, count, rows):
        for r in range(rows):
            chunk.errors[row + r] = 0
            for k in range(d):
                chunk.column[k, r] = chunk.z[row + r, k]
        for p in range(panels):
            place = (p * capacity + row) * width if has_gradient(cell) else 0
            store_tile(chunk.a, place, pre_activations(shape, inputs, chunk, p))
            evaluate_cells(shape, cell, inputs, chunk, row, p, place)
            if p % PANELS_OF_A_SUM == PANELS_OF_A_SUM - 1 or p == panels - 1:
                flush_errors(shape, chunk, row)


# dz[q, k] = sum_j da[q, j] W[j, k]
@jit
def latent_gradient(shape, inputs, chunk, count):
    width, lanes, columns = width_of(shape), lanes_of(shape), columns_of(shape)
    d, capacity, stride = inputs.mu.shape[1], chunk.datum.size, chunk.dz.shape[1]
    panels = inputs.x.shape[1] // width
    for row in range(0, count, rows_of(shape)):
        for r in range(rows_of(shape)):
            for k in range(stride):
                chunk.dz[row + r, k] = 0
        for k in range(0, d, columns):
            for start in range(0, panels, PANELS_OF_A_SUM):
                dz = zero_tile(shape)
                for p in range(start, min(start + PANELS_OF_A_SUM, panels)):
                    for c in range(columns):
                        a = (p * capacity + row) * width + c * lanes
                        w = (p * (d + 1) + k) * width + c * lanes
                        dz = inner_add(dz, chunk.a, a, width, inputs.panels, w, width)
                add_lane_sums(chunk.dz, row * stride + k, stride, dz)


# dW = sum_q g z^T da, and with the column of ones dc = sum_q g da, for one panel of pixels
@inline
def weight_gradient(shape, chunk, count, p, totals):
    rows, width, capacity, stride = rows_of(shape), width_of(shape), chunk.datum.size, chunk.z.shape[1]
    sums = np.empty((rows, width), chunk.z.dtype)
    for k in range(0, stride, rows):
        dw = zero_tile(shape)
        for row in range(count):
            dw = outer_add(dw, chunk.z, row * stride + k, load_row(shape, chunk.a, (p * capacity + row) * width))
        store_tile(sums, 0, dw)
        for r in range(rows):
            for j in range(width):
                totals.panels[p, k + r, j] += sums[r, j]


@jit
def phase_two(shape, inputs, chunk, count, weighted_samples, totals):
    width, pixels = width_of(shape), inputs.x.shape[1]
    if weighted_samples:
        for row in range(count):
            for k in range(chunk.z.shape[1]):
                chunk.z[row, k] *= chunk.g[row]
    for p in range(pixels // width):
        if totals.panels.size:
            weight_gradient(shape, chunk, count, p, totals)
        for row in range(count):
            b, g = chunk.datum[row], np.float64(chunk.g[row])
            shared = b if inputs.weight_stride else 0
            if totals.x.size:
                for j in range(width):
                    totals.x[b, p * width + j] += g * chunk.dx[p, row, j]
            if totals.weight.size:
                for j in range(width):
                    totals.weight[shared, p * width + j] += g * chunk.dw[p, row, j]


@jit
def reduce_rows(inputs, chunk, first, count, totals):
    d, n = inputs.mu.shape[1], inputs.num_samples
    for row in range(count):
        b, g, error = chunk.datum[row], np.float64(chunk.g[row]), chunk.errors[row]
        if totals.errors.size:
            totals.errors[first + row] = error
        if (first + row) % n == 0:
            totals.moments[b, 0] = error
        shifted = error - totals.moments[b, 0]
        totals.moments[b, 1] += shifted
        totals.moments[b, 2] += shifted * shifted
        if totals.mu.size:
            for k in range(d):
                dz = g * chunk.dz[row, k]
                totals.mu[b, k] += dz
                totals.logvar[b, k] += dz * chunk.eps[row, k] * inputs.sigma[b, k] * 0.5


@jit
def run_chunks(shape, cell, inputs, upstream, chunk, totals):
    """Take every row of the problem once, chunk by chunk, and add up `totals`."""
    rows, capacity = inputs.mu.shape[0] * inputs.num_samples, chunk.datum.size
    for first in range(0, rows, capacity):
        count = min(capacity, rows - first)
        draw(shape, inputs, upstream, first, count, chunk)
        phase_one(shape, cell, inputs, chunk, count)
        if totals.mu.size:
            latent_gradient(shape, inputs, chunk, count)
        if has_gradient(cell):
            phase_two(shape, inputs, chunk, count, upstream.size > 0, totals)
        reduce_rows(inputs, chunk, first, count, totals)
