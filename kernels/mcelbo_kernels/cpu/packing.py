"""Weights into panels before a pass, and gradients out of them after it: tasks of one panel each."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mcelbo_kernels._compile import linked
from mcelbo_kernels.cpu.buffers import (
    BIAS,
    BIAS_GRADIENT,
    INPUTS,
    OUTPUTS,
    PANELS,
    TOTAL,
    TRANSPOSED,
    WEIGHT,
    WEIGHT_GRADIENT,
)
from mcelbo_kernels.cpu.cell import only_where
from mcelbo_kernels.cpu.shape import lanes_of, width_of
from mcelbo_kernels.cpu.tile import load_row, store_tile
from mcelbo_kernels.cpu.transposition import load_block, rounded, store_block, transposed


@intrinsic
def array_at(typing: Any, like: Any, address: Any) -> Any:
    """Return an array of the type of `like` whose data begin at `address`, and whose size nobody knows."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        array = context.make_array(like)(context, builder, arguments[0])
        array.data = builder.inttoptr(arguments[1], array.data.type)
        array.meminfo = array.meminfo.type(None)  # nobody's memory, so that nobody counts references
        return array._getvalue()

    return like(like, types.intp), code


# panel[k, j] = W[first + j, k],   panel[I, j] = c[first + j]; behind the outputs 0
@linked
def pack_outputs(shape, layer, p, weights):
    width, lanes, inputs, outputs = width_of(shape), lanes_of(shape), layer[INPUTS], layer[OUTPUTS]
    weight, bias = array_at(weights, layer[WEIGHT]), array_at(weights, layer[BIAS])
    panel = layer[PANELS] + p * (inputs + 1) * width
    for first in range(0, width, lanes):
        o = p * width + first
        whole = inputs // lanes * lanes if o + lanes <= outputs else 0
        for k in range(0, whole, lanes):
            block = transposed(load_block(shape, weight, o * inputs + k, inputs))
            store_block(weights, panel + k * width + first, width, block)
        for j in range(lanes):
            there = o + j < outputs
            for k in range(whole, inputs):
                weights[panel + k * width + first + j] = weight[(o + j) * inputs + k] if there else 0
            weights[panel + inputs * width + first + j] = bias[o + j] if there else 0


# panel[o, j] = W[o, first + j]
@only_where(lambda cell: cell.gradient)
@linked
def pack_inputs(shape, cell, layer, p, weights):
    width, inputs = width_of(shape), layer[INPUTS]
    weight = array_at(weights, layer[WEIGHT])
    panel = layer[TRANSPOSED] + p * layer[OUTPUTS] * width
    there = min(width, inputs - p * width)
    for o in range(layer[OUTPUTS]):
        if there == width:
            store_tile(weights, panel + o * width, load_row(shape, weight, o * inputs + p * width))
        else:
            for j in range(width):
                weights[panel + o * width + j] = weight[o * inputs + p * width + j] if j < there else 0


# dW[first + j, k] = scale panel[k, j],   dc[first + j] = scale panel[I, j]
@only_where(lambda cell: cell.gradient)
@linked
def unpack_gradient(shape, cell, layer, p, weights, totals, scale):
    width, lanes, inputs = width_of(shape), lanes_of(shape), layer[INPUTS]
    panel = layer[TOTAL] + p * (inputs + 1) * width
    outputs = min(width, layer[OUTPUTS] - p * width)
    if layer[WEIGHT_GRADIENT]:
        dw = array_at(weights, layer[WEIGHT_GRADIENT])
        for first in range(0, outputs, lanes):
            o = p * width + first
            whole = inputs // lanes * lanes if first + lanes <= outputs else 0
            for k in range(0, whole, lanes):
                block = rounded(shape, load_block(shape, totals.layers, panel + k * width + first, width), scale)
                store_block(dw, o * inputs + k, inputs, transposed(block))
            for j in range(min(lanes, outputs - first)):
                for k in range(whole, inputs):
                    dw[(o + j) * inputs + k] = totals.layers[panel + k * width + first + j] * scale
    if layer[BIAS_GRADIENT]:
        dc = array_at(weights, layer[BIAS_GRADIENT])
        for j in range(outputs):
            dc[p * width + j] = totals.layers[panel + inputs * width + j] * scale
