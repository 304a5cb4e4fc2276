"""A layer's kernels on the way forward: its output, and behind the last one the pixels' errors.

Rows are a chunk's samples; layer l takes I inputs to O outputs. All matrices lie row after row. With gradients each
layer leaves its input h (rows, I) and, in place of its activation's slope, da (rows, O).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from mcelbo_kernels.cuda.cell import activation, evaluation
from mcelbo_kernels.cuda.operands import along_sum
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
@cache
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
@cache
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
