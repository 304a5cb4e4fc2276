"""The last layer of a squared error without pixels: a quadratic form of the last hidden layer, and what surrounds it.

Of y = h W^T + c and each datum's centre h0 with r0 = x - h0 W^T - c, delta = h - h0, G = W^T (w W), a = (w r0) W:

    T = sum_j w r0^2 + t,   t = delta G delta^T - 2 delta a = delta (u - 2 a),   u = delta G,   dt/ddelta = 2 (u - a)

The first kernel passes over the samples; the others are second stages of the batch's products, which come in parts.
They take a number or two to a thread and are as fast as memory, so that they add up in float64.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from mcelbo_kernels.cuda.epilogue import over_tile
from mcelbo_kernels.cuda.layers import WAITING, data_of_rows, position, row_sums, set_aside
from mcelbo_kernels.cuda.operands import along_sum
from mcelbo_kernels.cuda.product import product, shared_size
from mcelbo_kernels.cuda.seam import ALIGNED, Kernel, cuda, device, float64, int32, int64, pointer
from mcelbo_kernels.cuda.sums import LANES_OF_PIXELS, MASK, THREADS, added, halving
from mcelbo_kernels.cuda.tile import Tile


class Form(NamedTuple):
    """What the kernel of the quadratic form is compiled for.

    Attributes
    ----------
    tile, real : as of `layers.Hidden`
    gradient : bool
        Whether anything before it has a gradient.
    slope : bool
        Whether its input is an activation, whose slope turns into da of the layer before.
    """

    tile: Tile
    real: Any
    gradient: bool
    slope: bool


# u = delta G,   t = delta (u - 2 a),   dh = 2 (u - a), times the slope of the activation before it, or dz
@cache
def form(spec: Form) -> Kernel:
    """Return the kernel from delta (rows, H) to the sums of t over each tile's columns (tiles, rows), and da or dz.

    G is symmetric, so that its rows serve as columns.
    """
    tile, real, gradient, slope = spec
    rows, columns, finished, height, width = tile.rows, tile.columns, tile.finished, tile.height, tile.width
    numbers, zero, size_of_buffers = pointer(real), real(0), shared_size(tile)
    multiply = product(tile, real, *(along_sum(length, tile, real) for length in (height, width)))
    find, find_data, add_rows = position(tile), data_of_rows(tile), row_sums(tile, real)

    @device
    def row(r, state):
        _acc, _totals, datum, first, column, size, _delta, _a, _result = state
        return (first + r) * size + column, int64(datum[r]) * size + column

    # the loads are here, because registers do not hold a row of three matrices beside all else
    @device
    def finish(i, j, inside, across, c, place, given, state):
        acc, totals, _datum, _first, _column, _size, delta, a, result = state
        derivative = zero
        if inside:
            coupling = a[place[1] + c]
            half = acc[i, j] - coupling
            totals[i] += delta[place[0] + c] * (half - coupling)
            derivative = half + half
            if gradient and slope:
                derivative *= result[place[0] + c]
        return (derivative,)

    add_all = over_tile(tile, real, row, finish, leaves=(gradient,))

    def kernel(delta, g, a, sums, result, n, begin, count, size, _outputs):
        shared = cuda.shared.array(size_of_buffers, real, ALIGNED)
        waiting = cuda.shared.array(WAITING, int64)
        datum = cuda.shared.array(height, int32)
        acc, totals = cuda.local.array((rows, columns), real), cuda.local.array(finished, real)
        first, valid, column, wide = find(int32(cuda.blockIdx.x), count, size)
        set_aside(waiting, first, column)
        find_data(datum, begin + first, valid, n)
        for i in range(rows):
            for j in range(columns):
                acc[i, j] = zero
        stride = int64(size)
        multiply(acc, shared, (delta, first, valid, stride), (g, column, wide, stride), 0, size)
        first, column = waiting[0], waiting[1]
        for i in range(finished):
            totals[i] = zero
        add_all(valid, wide, None, (result,), (acc, totals, datum, first, column, size, delta, a, result))
        add_rows(shared, totals, sums, column // width * count + first, valid)

    signature = (*[numbers] * 5, int64, int64, int64, int32, int32)
    return Kernel(f"form {spec}", kernel, signature, tile.threads, tile.blocks(real, True))


# r0 = x - (h0 W^T + c),   w r0,   fit[b] = sum_j w r0^2
@cache
def centre_errors(real: Any, weighted: bool, by_weight: bool) -> Kernel:
    """Return the kernel from the parts of h0 W^T in float64 to w r0 (B, m), r0 where dw needs it, and the fit (B,).

    A block takes a datum. Products are off by a rounding of h0 W^T, of which little would be left in single precision.
    """
    halve = halving(1)

    def kernel(product, parts, x, bias, weight, size, pixels, scaled, r0, fit):
        sums = cuda.shared.array(THREADS, float64)
        t, b = int64(cuda.threadIdx.x & MASK), int64(cuda.blockIdx.x)
        total = float64(0)
        for j in range(t, pixels, THREADS):
            at = b * pixels + j
            error = float64(x[at]) - (added(product, parts, size, at) + bias[j])
            if by_weight:
                r0[at] = real(error)
            pixel = float64(weight[j]) if weighted else float64(1)
            # a weight of zero excludes the pixel whatever it holds
            error = error if pixel != 0 else float64(0)
            scaled[at] = real(pixel * error)
            total += pixel * error * error
        sums[t] = total
        halve(sums, t)
        if t == 0:
            fit[b] = sums[0]

    numbers, wide = pointer(real), pointer(float64)
    signature = (wide, int64, *[numbers] * 3, int64, int64, numbers, numbers, wide)
    return Kernel(f"centre_errors {real} {weighted} {by_weight}", kernel, signature, THREADS, 1)


class Residuals(NamedTuple):
    """What the kernel of the mean errors is compiled for: what of it is needed, and whether pixels have weights."""

    real: Any
    weighted: bool
    by_data: bool
    by_weight: bool
    by_layer: bool


# w P = w r0 - w v W^T,   dx = 2 w P
@cache
def residuals(spec: Residuals) -> Kernel:
    """Return the kernel from w r0 and the parts of v W^T to w P and dx, all (B, m); for dw v W^T replaces its parts."""
    real, weighted, by_data, by_weight, by_layer = spec

    def kernel(scaled, change, parts, weight, size, pixels, p, dx):
        at = int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        if at < size:
            moved = added(change, parts, size, at)
            if by_weight:
                change[at] = real(moved)
            left = scaled[at] - (weight[at % pixels] * moved if weighted else moved)
            if by_layer:
                p[at] = real(left)
            if by_data:
                dx[at] = real(left + left)

    numbers = pointer(real)
    signature = (numbers, numbers, int64, numbers, int64, int64, numbers, numbers)
    return Kernel(f"residuals {spec}", kernel, signature, THREADS, 1)


# dW = -2 ((w P)^T h0 + (w r0)^T v) + 2 w (W S),   dc = -2 sum_b w P
@cache
def layer_gradient(real: Any, weighted: bool) -> Kernel:
    """Return the kernel from the parts of dW's products to the gradients of the last layer's weight and bias.

    The first two have the sums over their left operands' rows behind them: (parts, m H + m).
    """

    def kernel(first, second, parts, squares, parts_of_squares, weight, pixels, width, dw, dc, by_weight, by_bias):
        at = int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        weights = pixels * width
        size = weights + pixels
        if at < weights:
            if by_weight:
                of_data = added(first, parts, size, at) + added(second, parts, size, at)
                of_samples = added(squares, parts_of_squares, weights, at)
                if weighted:
                    of_samples *= weight[at // width]
                dw[at] = real(2 * (of_samples - of_data))
        elif at < size and by_bias:
            dc[at - weights] = real(-2 * added(first, parts, size, at))

    numbers = pointer(real)
    signature = (numbers, numbers, int64, numbers, int64, numbers, int64, int64, numbers, numbers, int32, int32)
    return Kernel(f"layer_gradient {real} {weighted}", kernel, signature, THREADS, 1)


# dw = sum_b r0 (r0 - 2 v W^T) + sum_k (W S)_k W_k
@cache
def pixel_weight_gradient(real: Any) -> Kernel:
    """Return the kernel from r0 and v W^T (B, m), and the parts of W S (m, H), to the gradient of the shared weights.

    A block takes a warp's width of pixels: side by side in a datum, and one after the other along the rows of W.
    """
    lanes = LANES_OF_PIXELS
    halve, groups, shift, last, pitch = halving(lanes), THREADS // lanes, lanes.bit_length() - 1, lanes - 1, lanes + 1
    room = lanes * pitch

    def kernel(r0, change, squares, parts, of_layer, batch, pixels, width, result):
        of_data = cuda.shared.array(THREADS, float64)
        of_samples = cuda.shared.array(room, float64)
        t, first = int64(cuda.threadIdx.x & MASK), int64(cuda.blockIdx.x) * lanes
        lane, group = t & last, t >> shift
        total = float64(0)
        if first + lane < pixels:
            for b in range(group, batch, groups):
                error = float64(r0[b * pixels + first + lane])
                total += error * (error - 2 * float64(change[b * pixels + first + lane]))
        of_data[t] = total
        for row in range(group, min(lanes, pixels - first), groups):
            total = float64(0)
            for k in range(lane, width, lanes):
                at = (first + row) * width + k
                total += added(squares, parts, pixels * width, at) * of_layer[at]
            of_samples[row * pitch + lane] = total
        halve(of_data, t)
        if t < lanes and first + t < pixels:
            total = of_data[t]
            for other in range(lanes):
                total += of_samples[t * pitch + other]
            result[first + t] = real(total)

    numbers = pointer(real)
    signature = (*[numbers] * 3, int64, numbers, int64, int64, int64, numbers)
    return Kernel(f"pixel_weight_gradient {real}", kernel, signature, THREADS, 1)
