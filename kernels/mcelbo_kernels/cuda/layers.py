"""A layer's kernels: its output, the pixels' errors behind the last one, and the gradients back through it.

Rows are a chunk's samples; layer l takes I inputs to O outputs. All matrices lie row after row. With gradients each
layer leaves its input h (rows, I) and, in place of its activation's slope, da (rows, O).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from mcelbo_kernels.cuda.cell import activation, evaluation
from mcelbo_kernels.cuda.operands import across_sum, along_sum, spans, weighted_columns
from mcelbo_kernels.cuda.product import product, shared_sizes
from mcelbo_kernels.cuda.seam import ALIGNED, Kernel, cuda, device, int32, int64, pointer
from mcelbo_kernels.cuda.tile import Tile, over_tile, places


def position(tile: Tile) -> Any:
    """Return the device function (block, rows, columns) -> (first row, valid rows, first column, valid columns)."""
    height, width = tile.height, tile.width

    @device
    def find(block, rows, columns):
        tiles = int32(max(1, (columns + (width - 1)) // width))
        down = int32(block // tiles)
        first, column = int64(down) * height, int64(block - down * tiles) * width
        return first, int32(min(rows - first, height)), column, int32(min(columns - column, width))

    return find


def bias_start(tile: Tile, real: Any) -> Any:
    """Return the device function (acc, bias, column, valid): acc[i, j] = bias[column j]."""
    rows, columns, zero = tile.rows, tile.columns, real(0)
    beside, column_of = places(tile).left, places(tile).column

    @device
    def start(acc, bias, column, valid):
        for j in range(columns):
            c = beside() + column_of(j)
            value = bias[column + c] if c < valid else zero
            for i in range(rows):
                acc[i, j] = value

    return start


class Hidden(NamedTuple):
    """What the kernel of a layer before the last is compiled for.

    Attributes
    ----------
    tile, real, activation
    gradient : bool
        Whether the activation's slope is left.
    centred : bool
        Whether the centre of the row's datum is subtracted.
    """

    tile: Tile
    real: Any
    activation: str
    gradient: bool
    centred: bool = False


# h' = f(h W^T + c), f'(a);   h' - h0 where it is centred: here that is a load, mostly from the cache, for each sum of I
# terms; a kernel of its own would move 8 bytes a number again and be a launch
@lru_cache
def hidden(spec: Hidden) -> Kernel:
    """Return the kernel from h (rows, I) to h' (rows, O) and, with gradients, the activation's slope (rows, O)."""
    tile, real, _, gradient, centred = spec
    rows, columns, height, threads, numbers = tile.rows, tile.columns, tile.height, tile.threads, pointer(real)
    size_l, size_r = shared_sizes(tile)
    multiply = product(tile, real, *(along_sum(length, threads, real) for length in (height, tile.width)))
    find, start, activate = position(tile), bias_start(tile, real), activation(spec.activation, real)

    @device
    def datum_of(r, state):
        return int64(state[0][r]) if centred else int64(0)

    @device
    def leave(i, j, r, c, b, state):
        _datum, acc, first, column, outputs, parameter, result, slope, centre = state
        at = (first + r) * outputs + column + c
        value, derivative = activate(acc[i, j], parameter)
        if centred:
            value -= centre[b * outputs + column + c]
        result[at] = value
        if gradient:
            slope[at] = derivative

    leave_all = over_tile(tile, datum_of, leave)

    def kernel(h, weight, bias, parameter, result, slope, centre, n, begin, count, inputs, outputs):
        lefts = cuda.shared.array(size_l, real, ALIGNED)
        rights = cuda.shared.array(size_r, real, ALIGNED)
        datum = cuda.shared.array(height, int32)
        acc = cuda.local.array((rows, columns), real)
        first, valid, column, wide = find(int32(cuda.blockIdx.x), count, outputs)
        if centred:
            for r in range(cuda.threadIdx.x, valid, threads):
                datum[r] = int32((begin + first + r) // n)
        stride = int64(inputs)
        start(acc, bias, column, wide)
        multiply(acc, lefts, rights, (h, first, valid, stride), (weight, column, wide, stride), 0, inputs)
        leave_all(valid, wide, (datum, acc, first, column, outputs, parameter, result, slope, centre))

    signature = (*[numbers] * 3, real, *[numbers] * 3, int64, int64, int64, int32, int32)
    return Kernel(f"hidden {spec}", kernel, signature, tile.threads, tile.blocks(real))


class Last(NamedTuple):
    """What the kernel of the last layer is compiled for.

    Attributes
    ----------
    tile, real, activation : as of `Hidden`
    likelihood : str
    gradient, weighted, by_data, by_weight : bool
        Whether da is left, pixels have weights, and dx and dw are left.
    """

    tile: Tile
    real: Any
    activation: str
    likelihood: str
    gradient: bool
    weighted: bool
    by_data: bool
    by_weight: bool


# a = h W^T + c,   t = w cell(a, x),   da = w dt/da,   dx = w dt/dx,   dw = cell(a, x)
@lru_cache
def last(spec: Last) -> Kernel:
    """Return the kernel from h (rows, I) to the sums of t over each tile's columns (tiles, rows), and what is left."""
    tile, real, (_, _, _, _, gradient, weighted, by_data, by_weight) = spec.tile, spec.real, spec
    rows, columns, height, width, threads = tile.rows, tile.columns, tile.height, tile.width, tile.threads
    numbers, zero, (size_l, size_r) = pointer(real), real(0), shared_sizes(tile)
    multiply = product(tile, real, *(along_sum(length, threads, real) for length in (height, width)))
    find, start = position(tile), bias_start(tile, real)
    evaluate = evaluation(spec.likelihood, spec.activation, real)
    add_rows = row_sums(tile, real)

    @device
    def datum_of(r, state):
        return int64(state[2][r])

    @device
    def add(i, j, r, c, b, state):
        acc, totals, _datum, first, column, outputs, parameter, x, w, apart, da, dx, dw = state
        at = (first + r) * outputs + column + c
        t, of_a, of_x = evaluate(acc[i, j], x[b * outputs + column + c], parameter)
        if by_weight:
            dw[at] = t
        if weighted:
            pixel = w[b * apart + column + c]
            counts = pixel != zero
            t = pixel * t if counts else zero
            of_a = pixel * of_a if counts else zero
            of_x = pixel * of_x if counts else zero
        if by_data:
            dx[at] = of_x
        if gradient:
            da[at] = of_a
        totals[i] += t

    add_all = over_tile(tile, datum_of, add)

    def kernel(h, weight, bias, parameter, x, w, apart, sums, da, dx, dw, n, begin, count, inputs, outputs):
        lefts = cuda.shared.array(size_l, real, ALIGNED)
        rights = cuda.shared.array(size_r, real, ALIGNED)
        datum = cuda.shared.array(height, int32)
        acc, totals = cuda.local.array((rows, columns), real), cuda.local.array(rows, real)
        first, valid, column, wide = find(int32(cuda.blockIdx.x), count, outputs)
        for r in range(cuda.threadIdx.x, valid, threads):
            datum[r] = int32((begin + first + r) // n)
        start(acc, bias, column, wide)
        stride = int64(inputs)
        multiply(acc, lefts, rights, (h, first, valid, stride), (weight, column, wide, stride), 0, inputs)
        for i in range(rows):
            totals[i] = zero
        add_all(valid, wide, (acc, totals, datum, first, column, outputs, parameter, x, w, apart, da, dx, dw))
        add_rows(lefts, totals, sums, column // width * count + first, valid)

    signature = (*[numbers] * 3, real, *[numbers] * 2, int64, *[numbers] * 4, int64, int64, int64, int32, int32)
    return Kernel(f"last {spec}", kernel, signature, tile.threads, tile.blocks(real))


def row_sums(tile: Tile, real: Any) -> Any:
    """Return the device function (shared, totals, sums, at, valid): sums[at + r] = sum over threads of totals[r]."""
    rows, height, across, threads, zero = tile.rows, tile.height, tile.across, tile.threads, real(0)
    top, _, row_of, _ = places(tile)

    @device
    def add(shared, totals, sums, at, valid):
        part = (cuda.threadIdx.x & (across - 1)) * height
        for i in range(rows):
            shared[part + top() + row_of(i)] = totals[i]
        cuda.syncthreads()
        for r in range(cuda.threadIdx.x, valid, threads):
            total = zero
            for other in range(across):
                total += shared[other * height + r]
            sums[at + r] = total

    return add


class Backward(NamedTuple):
    """What the kernel from a layer's da to the gradient of its input is compiled for.

    Attributes
    ----------
    tile, real : as of `Hidden`
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
@lru_cache
def backward(spec: Backward) -> Kernel:
    """Return the kernel from da (rows, O) to the gradient of the layer's input (rows, I).

    Without a slope outputs are cut into parts of `piece`, each summed by blocks of its own: (parts, rows, I).
    """
    tile, real, slope, transposed, stored = spec
    rows, columns, given, zero = tile.rows, tile.columns, pointer(stored or real), real(0)
    size_l, size_r = shared_sizes(tile)
    left, of_weight = along_sum(tile.height, tile.threads, real), along_sum if transposed else across_sum
    multiply, find = product(tile, real, left, of_weight(tile.width, tile.threads, real)), position(tile)
    top, beside, row_of, column_of = places(tile)

    def kernel(da, weight, result, count, inputs, outputs, piece):
        lefts = cuda.shared.array(size_l, real, ALIGNED)
        rights = cuda.shared.array(size_r, real, ALIGNED)
        acc = cuda.local.array((rows, columns), real)
        first, valid, column, wide = find(int32(cuda.blockIdx.x), count, inputs)
        begin = int32(cuda.blockIdx.y * piece)
        end = int32(min(begin + piece, outputs))
        for i in range(rows):
            for j in range(columns):
                acc[i, j] = zero
        stride = int64(outputs if transposed else inputs)
        multiply(acc, lefts, rights, (da, first, valid, int64(outputs)), (weight, column, wide, stride), begin, end)
        for i in range(rows):
            r = top() + row_of(i)
            for j in range(columns):
                c = beside() + column_of(j)
                if r < valid and c < wide:
                    at = (first + r) * inputs + column + c
                    if slope:
                        result[at] = acc[i, j] * result[at]
                    else:
                        result[int64(cuda.blockIdx.y) * count * inputs + at] = acc[i, j]

    signature = (given, given, pointer(real), int64, int32, int32, int32)
    return Kernel(f"backward {spec}", kernel, signature, tile.threads, tile.blocks(real))


class WeightGradient(NamedTuple):
    """What the kernel of a layer's weight and bias gradients is compiled for.

    Attributes
    ----------
    tile, real : as of `Hidden`
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
@lru_cache
def weight_gradient(spec: WeightGradient) -> Kernel:
    """Return the kernel from da (rows, O) and h (rows, I) to (parts, O I + O), the weight's gradient, then the bias's.

    A part are `piece` rows. The bias's sums ride on the loads: a thread loads the same few columns of da all the time.
    """
    tile, real, upstream, symmetric = spec
    rows, columns, height, numbers, zero = tile.rows, tile.columns, tile.height, pointer(real), real(0)
    size_l, size_r = shared_sizes(tile)
    left = weighted_columns(tile.height, tile.threads, real, upstream)
    multiply, find = product(tile, real, left, across_sum(tile.width, tile.threads, real)), position(tile)
    top, beside, row_of, column_of = places(tile)
    threads, each, parts = tile.threads, *spans(tile.height, tile.threads)

    def kernel(da, g, h, result, begin, count, inputs, outputs, piece):
        lefts = cuda.shared.array(size_l, real, ALIGNED)
        rights = cuda.shared.array(size_r, real, ALIGNED)
        acc, column_sums = cuda.local.array((rows, columns), real), cuda.local.array(each, real)
        first, valid, column, wide = find(int32(cuda.blockIdx.x), outputs, inputs)
        if symmetric and column >= first + height:
            return
        start = int64(cuda.blockIdx.y) * piece
        end = min(start + piece, count)
        at = int64(cuda.blockIdx.y) * outputs * (inputs + 1)
        for e in range(each):
            column_sums[e] = zero
        for i in range(rows):
            for j in range(columns):
                acc[i, j] = zero
        ours, theirs = (da, first, valid, int64(outputs), g, begin, column_sums), (h, column, wide, int64(inputs))
        multiply(acc, lefts, rights, ours, theirs, start, end)
        for i in range(rows):
            r = top() + row_of(i)
            for j in range(columns):
                c = beside() + column_of(j)
                if r < valid and c < wide:
                    result[at + (first + r) * inputs + column + c] = acc[i, j]
        if column == 0:
            for e in range(each):
                lefts[e * threads + cuda.threadIdx.x] = column_sums[e]
            cuda.syncthreads()
            for r in range(cuda.threadIdx.x, valid, threads):
                total = zero
                for part in range(parts):
                    total += lefts[part * height + r]
                result[at + int64(outputs) * inputs + first + r] = total

    signature = (numbers, numbers, numbers, numbers, int64, int64, int32, int32, int64)
    return Kernel(f"weight_gradient {spec}", kernel, signature, tile.threads, tile.blocks(real))
