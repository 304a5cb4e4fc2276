"""From a layer's da to the gradient of its input, and with the input to those of its weight and bias.

Rows are a chunk's samples; a layer takes I inputs to O outputs. All matrices lie row after row.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from mcelbo_kernels.cuda.epilogue import over_tile
from mcelbo_kernels.cuda.layers import WAITING, position, set_aside
from mcelbo_kernels.cuda.operands import across_sum, along_sum, spans, weighted_columns
from mcelbo_kernels.cuda.product import product, shared_size
from mcelbo_kernels.cuda.seam import ALIGNED, Kernel, cuda, device, int32, int64, pointer
from mcelbo_kernels.cuda.tile import Tile, group_of, moved


class Backward(NamedTuple):
    """What the kernel from a layer's da to the gradient of its input is compiled for.

    Attributes
    ----------
    tile, real : as of `layers.Hidden`
    slope : bool
        Whether the input is an activation, whose slope turns into da of the layer before.
    transposed : bool
        Whether W lies in memory as (I, O).
    stored : numba type, optional
        Precision of da and W, where it is not that of the sums.
    """

    tile: Tile
    real: Any
    slope: bool
    transposed: bool = False
    stored: Any = None


# dh = da W;   da of the layer before, in place of its slope, or a part of dz, or of any other product
@cache
def backward(spec: Backward) -> Kernel:
    """Return the kernel from da (rows, O) to the gradient of the layer's input (rows, I).

    Without a slope outputs are cut into parts of `piece`, each summed by blocks of its own: (parts, rows, I).
    """
    tile, real, slope, transposed, stored = spec
    rows, columns, given, zero, size = tile.rows, tile.columns, pointer(stored or real), real(0), shared_size(tile)
    left, of_weight = along_sum(tile.height, tile, real), along_sum if transposed else across_sum
    multiply, find = product(tile, real, left, of_weight(tile.width, tile, real)), position(tile)
    move = moved(real)

    @device
    def row(r, state):
        _acc, start, inputs = state
        return start + r * inputs, start + r * inputs

    @device
    def finish(i, j, inside, across, c, place, derivative, state):
        sums = state[0]
        return (sums[i, j] * derivative if slope else move(sums[i, j]),)

    leave_all = over_tile(tile, real, row, finish, reads=slope)

    def kernel(da, weight, result, count, inputs, outputs, piece):
        shared = cuda.shared.array(size, real, ALIGNED)
        waiting = cuda.shared.array(WAITING, int64)
        acc = cuda.local.array((rows, columns), real)
        first, valid, column, wide = find(int32(cuda.blockIdx.x), count, inputs)
        set_aside(waiting, first, column)
        begin = int32(cuda.blockIdx.y * piece)
        end = int32(min(begin + piece, outputs))
        for i in range(rows):
            for j in range(columns):
                acc[i, j] = zero
        stride = int64(outputs if transposed else inputs)
        multiply(acc, shared, (da, first, valid, int64(outputs)), (weight, column, wide, stride), begin, end)
        first, column = waiting[0], waiting[1]
        # with a slope there is one part
        start = (int64(cuda.blockIdx.y) * count + first) * inputs + column
        leave_all(valid, wide, result, (result,), (acc, start, inputs))

    signature = (given, given, pointer(real), int64, int32, int32, int32)
    crowded = slope and tile.down > tile.across
    return Kernel(f"backward {spec}", kernel, signature, tile.threads, tile.blocks(real, crowded))


class WeightGradient(NamedTuple):
    """What the kernel of a layer's weight and bias gradients is compiled for.

    Attributes
    ----------
    tile, real : as of `layers.Hidden`
    upstream : bool
        Whether samples have factors g.
    symmetric : bool
        Whether da is h, so that the tiles above the diagonal are left out.
    """

    tile: Tile
    real: Any
    upstream: bool
    symmetric: bool = False


# dW += sum_q g da^T h,   dc += sum_q g da,   for a part of the rows
@cache
def weight_gradient(spec: WeightGradient) -> Kernel:
    """Return the kernel from da (rows, O) and h (rows, I) to (parts, O I + O), the weight's gradient, then the bias's.

    A part are `piece` rows. The bias's sums ride on the loads: a thread loads the same few columns of da all the time.
    """
    tile, real, upstream, symmetric = spec
    rows, columns, height, numbers, zero = tile.rows, tile.columns, tile.height, pointer(real), real(0)
    size, left = shared_size(tile), weighted_columns(tile.height, tile, real, upstream)
    multiply, find = product(tile, real, left, across_sum(tile.width, tile, real)), position(tile)
    members, threads, group, move = tile.members, tile.threads, group_of(tile), moved(real)
    each, apart = spans(height, members)
    parts = apart * tile.groups

    @device
    def row(r, state):
        _acc, start, inputs = state
        return (start + r * inputs,)

    @device
    def finish(i, j, inside, across, c, place, given, state):
        return (move(state[0][i, j]),)

    leave_all = over_tile(tile, real, row, finish)

    def kernel(da, g, h, result, begin, count, inputs, outputs, piece):
        shared = cuda.shared.array(size, real, ALIGNED)
        waiting = cuda.shared.array(WAITING, int64)
        acc, column_sums = cuda.local.array((rows, columns), real), cuda.local.array(each, real)
        first, valid, column, wide = find(int32(cuda.blockIdx.x), outputs, inputs)
        if symmetric and column >= first + height:
            return
        set_aside(waiting, first, column)
        start = int64(cuda.blockIdx.y) * piece
        end = min(start + piece, count)
        for e in range(each):
            column_sums[e] = zero
        for i in range(rows):
            for j in range(columns):
                acc[i, j] = zero
        ours, theirs = (da, first, valid, int64(outputs), g, begin, column_sums), (h, column, wide, int64(inputs))
        multiply(acc, shared, ours, theirs, start, end)
        first, column = waiting[0], waiting[1]
        at = int64(cuda.blockIdx.y) * outputs * (inputs + 1)
        leave_all(valid, wide, None, (result,), (acc, at + first * inputs + column, inputs))
        if column == 0:
            for e in range(each):
                shared[(group() * each + e) * members + (cuda.threadIdx.x & (members - 1))] = column_sums[e]
            cuda.syncthreads()
            for r in range(cuda.threadIdx.x, valid, threads):
                total = zero
                for part in range(parts):
                    total += shared[part * height + r]
                result[at + int64(outputs) * inputs + first + r] = total

    signature = (numbers, numbers, numbers, numbers, int64, int64, int32, int32, int64)
    return Kernel(f"weight_gradient {spec}", kernel, signature, threads, tile.blocks(real, left.share > 8 or upstream))
