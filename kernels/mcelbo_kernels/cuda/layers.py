"""A layer's kernels on the way forward: its output, and behind the last one the pixels' errors.

Rows are a chunk's samples; layer l takes I inputs to O outputs. All matrices lie row after row. With gradients each
layer leaves its input h (rows, I) and, in place of its activation's slope, da (rows, O).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from mcelbo_kernels.cuda.cell import activation, evaluation
from mcelbo_kernels.cuda.epilogue import over_tile
from mcelbo_kernels.cuda.operands import along_sum
from mcelbo_kernels.cuda.product import product, shared_size
from mcelbo_kernels.cuda.seam import ALIGNED, Kernel, cuda, device, int32, int64, pointer
from mcelbo_kernels.cuda.tile import GAP, LARGE, Tile, group_of, places, places_to_finish

# What the loop of a product does not need waits in shared memory, because the loop takes all registers.
WAITING = 2


@device
def set_aside(waiting, first, column):
    """Keep a tile's first row and column, until the product's barriers let all threads read them."""
    if cuda.threadIdx.x == 0:
        waiting[0], waiting[1] = first, column


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
    """Return the device function (acc, bias, column, valid): acc[i, j] = bias[column j], in the first group alone."""
    rows, columns, zero = tile.rows, tile.columns, real(0)
    beside, column_of, group = places(tile).left, places(tile).column, group_of(tile)

    @device
    def start(acc, bias, column, valid):
        given = valid if group() == 0 else int32(0)
        for j in range(columns):
            c = beside() + column_of(j)
            value = bias[column + c] if c < given else zero
            for i in range(rows):
                acc[i, j] = value

    return start


def data_of_rows(tile: Tile) -> Any:
    """Return the device function (datum, row, valid, n): datum[r] = the datum of sample row + r."""
    threads = tile.threads

    @device
    def find(datum, row, valid, n):
        for r in range(cuda.threadIdx.x, valid, threads):
            datum[r] = int32((row + r) // n)

    return find


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
    rows, columns, height, size, numbers = tile.rows, tile.columns, tile.height, shared_size(tile), pointer(real)
    multiply = product(tile, real, *(along_sum(length, tile, real) for length in (height, tile.width)))
    find, start, activate = position(tile), bias_start(tile, real), activation(spec.activation, real)
    find_data, zero = data_of_rows(tile), real(0)
    # the large tile leaves no registers for a row of centres
    early = centred and tile != LARGE

    @device
    def row(r, state):
        datum, _acc, first, column, outputs, _parameter, _centres = state
        return (first + r) * outputs + column, (int64(datum[r]) if centred else int64(0)) * outputs + column

    @device
    def finish(i, j, inside, across, c, place, centre, state):
        _datum, acc, _first, _column, _outputs, parameter, centres = state
        value, derivative = activate(acc[i, j], parameter)
        if centred:
            value -= centre if early else (centres[place[1] + c] if inside else zero)
        return value, derivative

    leave_all = over_tile(tile, real, row, finish, leaves=(True, gradient), reads=early)

    def kernel(h, weight, bias, parameter, result, slope, centre, n, begin, count, inputs, outputs):
        shared = cuda.shared.array(size, real, ALIGNED)
        waiting = cuda.shared.array(WAITING, int64)
        datum = cuda.shared.array(height, int32)
        acc = cuda.local.array((rows, columns), real)
        first, valid, column, wide = find(int32(cuda.blockIdx.x), count, outputs)
        set_aside(waiting, first, column)
        if centred:
            find_data(datum, begin + first, valid, n)
        stride = int64(inputs)
        start(acc, bias, column, wide)
        multiply(acc, shared, (h, first, valid, stride), (weight, column, wide, stride), 0, inputs)
        first, column = waiting[0], waiting[1]
        state = datum, acc, first, column, outputs, parameter, centre
        leave_all(valid, wide, centre, (result, slope), state)

    signature = (*[numbers] * 3, real, *[numbers] * 3, int64, int64, int64, int32, int32)
    return Kernel(f"hidden {spec}", kernel, signature, tile.threads, tile.blocks(real, True))


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
    rows, columns, finished, height, width = tile.rows, tile.columns, tile.finished, tile.height, tile.width
    numbers, zero, size = pointer(real), real(0), shared_size(tile)
    multiply = product(tile, real, *(along_sum(length, tile, real) for length in (height, width)))
    find, start, find_data = position(tile), bias_start(tile, real), data_of_rows(tile)
    evaluate = evaluation(spec.likelihood, spec.activation, real)
    add_rows = row_sums(tile, real)
    # There are registers for a row's pixels, but not for their weights; where threads finish all rows, only if a cell
    # takes few.
    early = not weighted and (tile.groups > 1 or spec.likelihood == "squared_error")

    @device
    def row(r, state):
        _acc, _totals, datum, first, column, outputs, _parameter, _x, _w, apart = state
        b = int64(datum[r])
        return (first + r) * outputs + column, b * outputs + column, b * apart + column

    @device
    def finish(i, j, inside, across, c, place, of_x, state):
        acc, totals, _datum, _first, _column, _outputs, parameter, x, w, _apart = state
        if not early:
            of_x = x[place[1] + c] if inside else zero
        t, da, dx = evaluate(acc[i, j], of_x, parameter)
        dw = t
        if weighted:
            pixel = w[place[2] + c] if inside else zero
            counts = pixel != zero
            t, da, dx = (pixel * t, pixel * da, pixel * dx) if counts else (zero, zero, zero)
        # of rows outside nobody reads the total
        if across:
            totals[i] += t
        return da, dx, dw

    add_all = over_tile(tile, real, row, finish, leaves=(gradient, by_data, by_weight), reads=early)

    def kernel(h, weight, bias, parameter, x, w, apart, sums, da, dx, dw, n, begin, count, inputs, outputs):
        shared = cuda.shared.array(size, real, ALIGNED)
        waiting = cuda.shared.array(WAITING, int64)
        datum = cuda.shared.array(height, int32)
        acc, totals = cuda.local.array((rows, columns), real), cuda.local.array(finished, real)
        first, valid, column, wide = find(int32(cuda.blockIdx.x), count, outputs)
        set_aside(waiting, first, column)
        find_data(datum, begin + first, valid, n)
        start(acc, bias, column, wide)
        stride = int64(inputs)
        multiply(acc, shared, (h, first, valid, stride), (weight, column, wide, stride), 0, inputs)
        first, column = waiting[0], waiting[1]
        for i in range(finished):
            totals[i] = zero
        state = acc, totals, datum, first, column, outputs, parameter, x, w, apart
        add_all(valid, wide, x, (da, dx, dw), state)
        add_rows(shared, totals, sums, column // width * count + first, valid)

    signature = (*[numbers] * 3, real, *[numbers] * 2, int64, *[numbers] * 4, int64, int64, int64, int32, int32)
    return Kernel(f"last {spec}", kernel, signature, tile.threads, tile.blocks(real, weighted))


def row_sums(tile: Tile, real: Any) -> Any:
    """Return the device function (shared, totals, sums, at, valid): sums[at + r] = sum over threads of totals[r]."""
    rows, across, threads, zero, run = tile.finished, tile.across, tile.threads, real(0), tile.run
    top, beside, row_of, _ = places_to_finish(tile)
    # the gap keeps neighbouring threads' numbers apart in different banks
    pitch = tile.height + GAP

    @device
    def add(shared, totals, sums, at, valid):
        part = beside() // run * pitch
        for i in range(rows):
            shared[part + top() + row_of(i)] = totals[i]
        cuda.syncthreads()
        for r in range(cuda.threadIdx.x, valid, threads):
            total = zero
            for other in range(across):
                total += shared[other * pitch + r]
            sums[at + r] = total

    return add
