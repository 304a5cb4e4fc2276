"""The errors of decoded samples that already lie in a device's memory: the reduction of the chunked path.

T[b,i] = sum_j w t(y, x):    dT/dy = w dt/dy,    dT/dx = w dt/dx,    dT/dw = t,    t the cell

Numbers that pass through memory, for c samples of each of B data with m pixels:

    errors             y B c m read once, dy as many written once in the same pass; x and w from the caches, since
                       all samples of a datum read the same
    gradients          y B c m read once more where dx or dw is needed, both in one pass
    add_parts          parts of sums, where there are any: a percent or two of y

which are one to five launches. A thread has four numbers on their way at once, as one would leave memory waiting. Their
four terms are added up in the precision of the problem, and all else in float64, in an order that the sizes decide.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mcelbo_kernels.cuda.cell import evaluation
from mcelbo_kernels.cuda.layout import ENOUGH_BLOCKS, up
from mcelbo_kernels.cuda.seam import Kernel, cuda, float32, float64, int32, int64, pointer
from mcelbo_kernels.cuda.sums import MASK, THREADS, halve, lanes_for
from mcelbo_kernels.cuda.target import Target
from mcelbo_kernels.decoded import IDENTITY, DecodedErrors, check_decoded

AT_ONCE = 4
SHORTEST_SUM = 4 * AT_ONCE  # over samples, of a thread whose datum is cut into parts
FULL = 2 * ENOUGH_BLOCKS  # so many blocks does an H100 hold at once


def decoded_errors(
    cell: str,
    y: Any,
    x: Any,
    weight: Any,
    upstream: Any,
    need_y: bool,
    need_x: bool,
    need_weight: bool,
    target: Target,
) -> DecodedErrors:
    """Return T[b,i] = sum_j w[b,j] t(y[b,i,j], x[b,j]) and its vector-Jacobian product, flat arrays.

    A pixel of weight 0 is excluded by selection: it counts nothing, and has zero gradients in y and x, whatever x and y
    hold there. The gradient of the weight itself is t everywhere.

    Parameters
    ----------
    cell : str
        What t is: a name of `mcelbo_kernels.problem.CELLS`.
    y : array, shape (B, c, m), float32 or float64
        Decoded samples, c for each datum, in the device's memory, row after row, as all arrays.
    x : array, shape (B, m)
    weight : array, shape (B, m) or (1, m), or None
        None is 1.
    upstream : array, shape (B, c), or None
        The factors of the vector-Jacobian product, in the dtype of y; None is 1.
    need_y, need_x, need_weight : bool
        Which gradients to return.
    target : Target

    Returns
    -------
    DecodedErrors

    Raises
    ------
    TypeError
        If the dtypes differ.
    ValueError
        If the shapes do not agree, or the cell is unknown.
    """
    check_decoded(cell, y, x, weight, upstream)
    call = Call(cell, y, x, weight, upstream, target)
    errors, dy = call.errors(need_y)
    dx, dw = call.gradients(need_x, need_weight)
    return DecodedErrors(errors, dy, dx, dw)


def blocks_at_once(real: Any) -> int:
    """Return how many blocks are to fit a multiprocessor: as many as spill no register."""
    return 4 if real == float32 else 3


class Cut(NamedTuple):
    """How a sum is shared out: `lanes` neighbouring threads, a power of two, and `parts` of `piece` terms."""

    lanes: int
    parts: int
    piece: int


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is no smaller."""
    return 1 << max(0, size - 1).bit_length()


def cut_pixels(rows: int, pixels: int) -> Cut:
    """Cut the sum over each row's pixels: the fewer pixels in all, the fewer a thread takes."""
    terms = max(AT_ONCE, rows * pixels // (FULL * THREADS))
    lanes = max(lanes_for(pixels), min(THREADS, power_of_two(up(pixels, terms))))
    parts = max(1, up(pixels, lanes * terms))
    return Cut(lanes, parts, up(pixels, parts))


def cut_samples(batch: int, count: int, pixels: int) -> Cut:
    """Cut the sum over each datum's samples: few samples leave most of a block to neighbouring pixels."""
    groups = min(THREADS // 32, power_of_two(up(count, SHORTEST_SUM)))
    lanes = min(THREADS // groups, power_of_two(pixels))
    blocks, longest = max(1, batch * up(pixels, lanes)), up(count, THREADS // lanes * SHORTEST_SUM)
    parts = max(1, min(up(FULL, blocks), longest))
    return Cut(lanes, parts, up(count, parts))


class Call:
    """A call: its arrays, sizes and launches."""

    def __init__(self, cell: str, y: Any, x: Any, weight: Any, upstream: Any, target: Target) -> None:
        self.cell, self.target, self.dtype, (self.batch, self.count, self.pixels) = cell, target, x.dtype, y.shape
        self.real = float32 if x.dtype == np.float32 else float64
        self.weights = 0 if weight is None else len(weight)
        apart = self.pixels if self.weights > 1 else 0
        self.arrays = y, x, weight, apart, upstream, int(upstream is not None)

    def errors(self, need_y: bool) -> tuple[Any, Any]:
        """Return the errors and dy."""
        rows = self.batch * self.count
        lanes, parts, piece = cut_pixels(rows, self.pixels)
        sums = self.target.empty(parts * rows, np.float64)
        dy = self.target.empty(rows * self.pixels, self.dtype) if need_y else None
        if rows:
            kernel = errors(Errors(self.real, self.cell, self.weights > 0, need_y))
            blocks = up(rows, THREADS // lanes) * parts
            sizes = rows, self.count, self.pixels, parts, piece, lanes.bit_length() - 1
            self.target.launch(kernel, (blocks, 1), *self.arrays, *sizes, sums, dy)
        return self.added(sums, parts, rows), dy

    def gradients(self, need_x: bool, need_weight: bool) -> tuple[Any, Any]:
        """Return dx and dw."""
        if not (need_x or need_weight):
            return None, None
        lanes, parts, piece = cut_samples(self.batch, self.count, self.pixels)
        numbers = self.batch * self.pixels
        dx, dw = (self.target.empty(parts * numbers, np.float64) if need else None for need in (need_x, need_weight))
        blocks = self.batch * up(self.pixels, lanes) * parts
        if blocks:
            kernel = gradients(Gradients(self.real, self.cell, self.weights > 0, need_x, need_weight))
            sizes = self.batch, self.count, self.pixels, parts, piece, lanes.bit_length() - 1
            self.target.launch(kernel, (blocks, 1), *self.arrays, *sizes, dx, dw)
        if need_x:
            dx = self.added(dx, parts, numbers)
        if need_weight:
            # of a shared weight the data are parts too
            dw = (
                self.added(dw, parts, numbers) if self.weights != 1 else self.added(dw, parts * self.batch, self.pixels)
            )
        return dx, dw

    def added(self, sums: Any, parts: int, count: int) -> Any:
        """Return the sum of parts (parts, count)."""
        if parts == 1 or not count:
            return sums
        result, lanes = self.target.empty(count, np.float64), lanes_for(count)
        self.target.launch(add_parts(), (up(count, lanes), 1), sums, parts, count, lanes.bit_length() - 1, result)
        return result


class Errors(NamedTuple):
    """What the kernel of the errors is compiled for: `weighted` says that pixels have weights, `by_sample` asks dy."""

    real: Any
    cell: str
    weighted: bool
    by_sample: bool


# sums[part, b i] = sum over a part of the pixels j of w t,   dy[b, i, j] = w (g dt/dy)
@lru_cache
def errors(spec: Errors) -> Kernel:
    """Return the kernel from y (rows, m) to the errors' parts (parts, rows) and dy; a row belongs to 2^shift threads.

    `apart` is how far the weights of neighbouring data lie from each other, `given` whether there are factors g.
    """
    real, likelihood, weighted, by_sample = spec
    numbers, zero, one, evaluate = pointer(real), real(0), real(1), evaluation(likelihood, IDENTITY, real)

    def kernel(y, x, w, apart, g, given, rows, count, pixels, parts, piece, shift, sums, dy):
        totals = cuda.shared.array(THREADS, float64)
        ys, xs = cuda.local.array(AT_ONCE, real), cuda.local.array(AT_ONCE, real)
        ws = cuda.local.array(AT_ONCE, real)
        thread = int32(cuda.threadIdx.x & MASK)
        group, lane, lanes, groups = thread >> shift, thread & ((1 << shift) - 1), 1 << shift, THREADS >> shift
        number = int32(cuda.blockIdx.x) // parts
        part = int32(cuda.blockIdx.x) - number * parts
        row, end = int64(number) * groups + group, min((part + 1) * piece, pixels)
        total = float64(0)
        if row < rows:
            b = row // count
            factor = g[row] if given else one
            for first in range(part * piece + lane, end, AT_ONCE * lanes):
                for u in range(AT_ONCE):
                    j = first + u * lanes
                    if j < end:
                        ys[u], xs[u] = y[row * pixels + j], x[b * pixels + j]
                        ws[u] = w[b * apart + j] if weighted else one
                few = zero
                for u in range(AT_ONCE):
                    j = first + u * lanes
                    if j < end:
                        t, slope, _ = evaluate(ys[u], xs[u], zero)
                        slope *= factor
                        if weighted:
                            counts = ws[u] != zero
                            t, slope = ws[u] * t if counts else zero, ws[u] * slope if counts else zero
                        few += t
                        if by_sample:
                            dy[row * pixels + j] = slope
                total += float64(few)
        # the lanes of a row come to lie as far apart as there are rows
        totals[lane * groups + group] = total
        halve(totals, thread, groups)
        if lane == 0 and row < rows:
            sums[part * rows + row] = totals[group]

    arrays = numbers, numbers, numbers, int64, numbers, int32
    signature = (*arrays, int64, int64, int64, int32, int64, int32, pointer(float64), numbers)
    return Kernel(f"decoded_errors {spec}", kernel, signature, THREADS, blocks_at_once(real))


class Gradients(NamedTuple):
    """What the kernel of dx and dw is compiled for, one of which at least is asked for."""

    real: Any
    cell: str
    weighted: bool
    by_data: bool
    by_weight: bool


# dx[part, b, j] = sum over a part of the samples i of w (g dt/dx),   dw[part, b, j] = sum of g t
@lru_cache
def gradients(spec: Gradients) -> Kernel:
    """Return the kernel from y (B, c, m) to the parts of dx and dw (parts, B, m), 2^shift pixels a block."""
    real, likelihood, weighted, by_data, by_weight = spec
    numbers, zero, one, evaluate = pointer(real), real(0), real(1), evaluation(likelihood, IDENTITY, real)

    def kernel(y, x, w, apart, g, given, batch, count, pixels, parts, piece, shift, dx, dw):
        totals = cuda.shared.array(THREADS, float64)
        ys, gs = cuda.local.array(AT_ONCE, real), cuda.local.array(AT_ONCE, real)
        thread = int32(cuda.threadIdx.x & MASK)
        group, lane, lanes, groups = thread >> shift, thread & ((1 << shift) - 1), 1 << shift, THREADS >> shift
        across = int32((pixels + (lanes - 1)) >> shift)
        strip = int32(cuda.blockIdx.x) // across
        b = strip // parts
        part = strip - b * parts
        j = int64(int32(cuda.blockIdx.x) - strip * across) * lanes + lane
        end = min((part + 1) * piece, count)
        of_data = of_weight = float64(0)
        if j < pixels:
            pixel, weight = x[b * pixels + j], w[b * apart + j] if weighted else one
            counts = weight != zero
            for first in range(part * piece + group, end, AT_ONCE * groups):
                for u in range(AT_ONCE):
                    i = b * count + first + u * groups
                    if first + u * groups < end:
                        ys[u], gs[u] = y[i * pixels + j], g[i] if given else one
                few_of_data = few_of_weight = zero
                for u in range(AT_ONCE):
                    if first + u * groups < end:
                        t, _, slope = evaluate(ys[u], pixel, zero)
                        few_of_data += weight * (gs[u] * slope) if counts else zero
                        few_of_weight += gs[u] * t
                of_data += float64(few_of_data)
                of_weight += float64(few_of_weight)
        at = (int64(part) * batch + b) * pixels + j
        valid = group == 0 and j < pixels
        if by_data:
            totals[thread] = of_data
            halve(totals, thread, lanes)
            if valid:
                dx[at] = totals[lane]
        if by_weight:
            # before the first sums have been read none may be overwritten
            cuda.syncthreads()
            totals[thread] = of_weight
            halve(totals, thread, lanes)
            if valid:
                dw[at] = totals[lane]

    arrays, wide = (numbers, numbers, numbers, int64, numbers, int32), pointer(float64)
    signature = (*arrays, int64, int64, int64, int32, int64, int32, wide, wide)
    return Kernel(f"decoded_gradients {spec}", kernel, signature, THREADS, blocks_at_once(real))


# result[q] = sum over parts
@lru_cache
def add_parts() -> Kernel:
    """Return the kernel that adds up the rows of a matrix (parts, count), 2^shift columns a block."""

    def kernel(sums, parts, count, shift, result):
        totals = cuda.shared.array(THREADS, float64)
        thread = int32(cuda.threadIdx.x & MASK)
        group, lane = thread >> shift, thread & ((1 << shift) - 1)
        q = (int64(cuda.blockIdx.x) << shift) + lane
        total = float64(0)
        if q < count:
            for part in range(group, parts, THREADS >> shift):
                total += sums[part * count + q]
        totals[thread] = total
        halve(totals, thread, 1 << shift)
        if group == 0 and q < count:
            result[q] = totals[lane]

    wide = pointer(float64)
    return Kernel("add_parts", kernel, (wide, int64, int64, int32, wide), THREADS, blocks_at_once(float64))
