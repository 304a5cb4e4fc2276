"""The pass over one layer of few latents: da is of use while it is in a register, and is never stored.

With a few latents a product has too little to do for each number that it loads, so the loops are turned
round. A panel of pixels keeps its weights and their gradients in registers and goes through all rows of a task:

    a = W z + c,   t and da = dt/da of the cell,   T[q] += sum t,   dz[q] += W^T da,   dW += g da z,   dc += g da

T and dz, lane by lane, are short enough for the nearest cache. A tile is a panel of the layer's weights here: a row for
each latent and a last one for the bias, with which the 1 behind a row's latents goes. Each task leaves sums of dW and
dc, which are added up in order.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mcelbo_kernels._compile import inline, linked
from mcelbo_kernels.cpu.buffers import LEFT, PANELS, SCALED, TOTAL
from mcelbo_kernels.cpu.cell import has_gradient, only_where
from mcelbo_kernels.cpu.layers import PANELS_OF_A_SUM, flush_errors, pixels_of, without_padding
from mcelbo_kernels.cpu.shape import lanes_of, rows_of, width_of
from mcelbo_kernels.cpu.tile import (
    Tile,
    accumulate,
    caller,
    load_tile,
    load_vector,
    moved,
    pointer,
    store_tile,
    store_vector,
    zero_tile,
    zero_vector,
)
from mcelbo_kernels.numerics.lanes import call_intrinsic, splat, sum_of_lanes


def scalars(builder: ir.IRBuilder, tile: Tile, address: ir.Value) -> list[ir.Value]:
    """Return vectors of the scalars at `address`, one for each row of the tile."""
    return [splat(builder, builder.load(moved(builder, address, r)), tile.vector.lanes) for r in range(tile.rows)]


def fma(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """Return x y + z, rounded once."""
    return call_intrinsic(builder, "fma", z.type, x, y, z)


@intrinsic
def combine(typing: Any, tile: Any, array: Any, offset: Any) -> Any:
    """Return the row whose vectors are sum_r array[offset + r] tile[r, c], where the last factor is known to be 1."""
    row = Tile(tile.vector, 1, tile.columns)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, data, start = arguments
        *factors, _one = scalars(builder, tile, pointer(context, builder, array, data, start))
        sums = ir.Constant(row.llvm, ir.Undefined)
        for c in range(tile.columns):
            total = builder.extract_value(value, (tile.rows - 1) * tile.columns + c)
            for r, factor in enumerate(factors):
                total = fma(builder, factor, builder.extract_value(value, r * tile.columns + c), total)
            sums = builder.insert_value(sums, total, c)
        return sums

    return row(tile, array, types.intp), code


@intrinsic
def outer(typing: Any, tile: Any, array: Any, offset: Any, row: Any) -> Any:
    """Return tile[r, c] + array[offset + r] row[c], by FMA."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, data, start, right = arguments
        for r, factor in enumerate(scalars(builder, tile, pointer(context, builder, array, data, start))):
            for c in range(tile.columns):
                i = r * tile.columns + c
                total = fma(builder, factor, builder.extract_value(right, c), builder.extract_value(value, i))
                value = builder.insert_value(value, total, i)
        return value

    return tile(tile, array, types.intp, row), code


@intrinsic
def inner(typing: Any, tile: Any, row: Any) -> Any:
    """Return the column sum_c tile[r, c] row[c] of the rows but the last."""
    column = Tile(tile.vector, tile.rows - 1, 1)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, right = arguments
        sums = ir.Constant(column.llvm, ir.Undefined)
        for r in range(column.rows):
            left = [builder.extract_value(value, r * tile.columns + c) for c in range(tile.columns)]
            total = builder.fmul(left[0], builder.extract_value(right, 0))
            for c in range(1, tile.columns):
                total = fma(builder, left[c], builder.extract_value(right, c), total)
            sums = builder.insert_value(sums, total, r)
        return sums

    return column(tile, row), code


@intrinsic
def sum_and_map(typing: Any, function: Any, row: Any, arguments: Any) -> Any:
    """Return sum_c first[c] and the row second[c], where (first, second)[c] = function(row[c], 0, c, *arguments)."""
    _pair, call = caller(typing, function, row, arguments)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pairs = [call(context, builder, values[1], values[2], 0, c) for c in range(row.columns)]
        total, mapped = builder.extract_value(pairs[0], 0), ir.Constant(row.llvm, ir.Undefined)
        for c, pair in enumerate(pairs):
            total = builder.fadd(total, builder.extract_value(pair, 0)) if c else total
            mapped = builder.insert_value(mapped, builder.extract_value(pair, 1), c)
        return context.make_tuple(builder, signature.return_type, (total, mapped))

    return types.Tuple((row.vector, row))(function, row, arguments), code


@inline
def error_and_slope(a, r, c, shape, cell, inputs, b, pixel):
    t, da, _dx, _dw = pixels_of(a, shape, cell, inputs, b, pixel + c * lanes_of(shape))
    return t, da


# T[q] and dz[q] for the rows of a task, and its sums of dW and dc, for one panel of pixels
@linked
def thin_panel(shape, cell, inputs, p, start, stop, chunk, scratch, sums):
    layer, rows, lanes, width = inputs.layers[0], rows_of(shape), lanes_of(shape), width_of(shape)
    w, dw = load_tile(shape, chunk.weights, layer[PANELS] + p * rows * width), zero_tile(shape)
    for q in range(start, stop):
        z, error, dz = q * width, (q - start) * lanes, (q - start) * (rows - 1) * lanes
        a = without_padding(shape, inputs, combine(w, chunk.values, layer[LEFT] + z), p)
        t, da = sum_and_map(error_and_slope, a, (shape, cell, inputs, chunk.datum[q], p * width))
        store_vector(scratch.partial, error, load_vector(shape, scratch.partial, error) + t)
        if has_gradient(cell):
            accumulate(scratch.dz, dz, inner(w, da))
            dw = outer(dw, chunk.values, layer[SCALED] + z, da)
    # of a layer whose gradients nobody needs there is no room for sums
    if has_gradient(cell) and sums.size:
        store_tile(sums, p * rows * width, dw)


# dz[q] += the sums of the lanes of its part in the scratch, which starts again from zero
@linked
def flush_dz(shape, start, stop, chunk, scratch):
    latents, lanes = rows_of(shape) - 1, lanes_of(shape)
    for q in range(start, stop):
        for k in range(latents):
            place = ((q - start) * latents + k) * lanes
            chunk.dz[0, q, k] += sum_of_lanes(load_vector(shape, scratch.dz, place))
            store_vector(scratch.dz, place, zero_vector(shape))


# g z, and g in the column behind the latents, where samples have weights
@inline
def scale_latents(shape, inputs, start, stop, chunk):
    layer, width = inputs.layers[0], width_of(shape)
    for q in range(start, stop):
        for k in range(rows_of(shape)):
            chunk.values[layer[SCALED] + q * width + k] = chunk.values[layer[LEFT] + q * width + k] * chunk.g[q]


# T[q] and dz[q] for the rows of a task, and its sums of dW and dc
@only_where(lambda cell: cell.thin)
@linked
def thin_pass(shape, cell, inputs, start, stop, chunk, scratch, sums):
    panels, tiles = inputs.x.shape[1] // width_of(shape), -(-(stop - start) // rows_of(shape))
    for q in range(start, start + tiles * rows_of(shape)):
        chunk.errors[q] = 0
        if has_gradient(cell):
            for k in range(rows_of(shape) - 1):
                chunk.dz[0, q, k] = 0
    if inputs.upstream.size:
        scale_latents(shape, inputs, start, stop, chunk)
    for p in range(panels):
        thin_panel(shape, cell, inputs, p, start, stop, chunk, scratch, sums)
        if p % PANELS_OF_A_SUM == PANELS_OF_A_SUM - 1 or p == panels - 1:
            flush_errors(shape, start, tiles, chunk, scratch)
            if has_gradient(cell):
                flush_dz(shape, start, stop, chunk, scratch)


# the tasks' sums of dW and dc, for one panel of pixels
@only_where(lambda cell: cell.thin and cell.gradient)
@linked
def add_sums(shape, cell, layer, p, first, tasks, chunk, totals):
    size = rows_of(shape) * width_of(shape)
    for i in range(p * size, (p + 1) * size):
        total = 0.0 if first == 0 else totals.layers[layer[TOTAL] + i]
        for task in range(tasks):
            total += chunk.sums[task, i]
        totals.layers[layer[TOTAL] + i] = total
