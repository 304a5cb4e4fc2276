"""The kernels of decoded samples: their errors, the gradients by samples, data and weights, and what adds up parts.

A block's threads are `lanes` neighbours along the pixels, a power of two, and so many groups of them as there are
threads for, along the samples. A thread has `AT_ONCE` numbers on their way at a time, as one would leave memory
waiting. Their terms are added up in the precision of the problem, and all else in float64, in one order.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from mcelbo_kernels.cuda.cell import evaluation
from mcelbo_kernels.cuda.seam import Kernel, cuda, float32, float64, int32, int64, pointer
from mcelbo_kernels.cuda.sums import MASK, THREADS, add_in_groups, halve
from mcelbo_kernels.decoded import IDENTITY

AT_ONCE = 4


def blocks_at_once(real: Any) -> int:
    """Return how many blocks are to fit a multiprocessor: as many as spill no register."""
    return 4 if real == float32 else 3


class Errors(NamedTuple):
    """What the kernel of the errors is compiled for: `weighted` says that pixels have weights, `by_sample` asks dy."""

    real: Any
    cell: str
    weighted: bool
    by_sample: bool


# sums[part, b i] = sum over a part of the pixels j of w t,   dy[b, i, j] = w (g dt/dy)
@cache
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
@cache
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
                dx[at] = totals[thread]
        if by_weight:
            # no barrier: what a thread overwrites it alone has read
            totals[thread] = of_weight
            halve(totals, thread, lanes)
            if valid:
                dw[at] = totals[thread]

    arrays, wide = (numbers, numbers, numbers, int64, numbers, int32), pointer(float64)
    signature = (*arrays, int64, int64, int64, int32, int64, int32, wide, wide)
    return Kernel(f"decoded_gradients {spec}", kernel, signature, THREADS, blocks_at_once(real))


# result[q] = sum over parts
@cache
def add_parts() -> Kernel:
    """Return the kernel that adds up the rows of a matrix (parts, count), 2^shift columns a block."""

    def kernel(sums, parts, count, shift, result):
        totals = cuda.shared.array(THREADS, float64)
        thread = int32(cuda.threadIdx.x & MASK)
        group, lane = thread >> shift, thread & ((1 << shift) - 1)
        q = (int64(cuda.blockIdx.x) << shift) + lane
        add_in_groups(totals, sums, parts, count, q, thread, shift)
        if group == 0 and q < count:
            result[q] = totals[thread]

    wide = pointer(float64)
    return Kernel("add_parts", kernel, (wide, int64, int64, int32, wide), THREADS, blocks_at_once(float64))
