"""The second stage: what blocks left in parts is added up in float64, in an order that the problem alone decides.

What is added up over the rows of each datum is in `datum`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from mcelbo_kernels.cuda.seam import Kernel, cuda, device, float64, int32, int64, pointer

THREADS, LANES_OF_PIXELS = 256, 32
MASK = THREADS - 1


@device
def added(sums, parts, size, at, first=0, step=1):
    """Return number `at` of a matrix of so many numbers, of which every `step`th part from the first on is taken."""
    total = float64(0)
    for part in range(first, parts, step):
        total += sums[part * size + at]
    return total


@device
def halve(shared, t, lanes, values=1):
    """Add up shared[lane], shared[lane + lanes], ... into shared[lane]; `lanes` is a power of two.

    There may be several values, each with as many numbers as there are threads, one behind the other.
    """
    cuda.syncthreads()
    apart = THREADS // 2
    while apart >= lanes:
        if t < apart:
            for v in range(values):
                shared[v * THREADS + t] += shared[v * THREADS + t + apart]
        cuda.syncthreads()
        apart >>= 1


def halving(lanes: int, values: int = 1) -> Any:
    """Return `halve` for a number of lanes that is known when it is compiled."""

    @device
    def add(shared, t):
        halve(shared, t, lanes, values)

    return add


@device
def add_in_groups(shared, sums, parts, size, at, t, shift):
    """Leave the sum of number `at` over the parts, which 2^shift neighbours share out with the others, in shared[t]."""
    shared[t] = added(sums, parts, size, at, t >> shift, THREADS >> shift) if at < size else float64(0)
    halve(shared, t, 1 << shift)


def groups_for(parts: int) -> int:
    """Return how many groups of threads share so many parts out."""
    return 1 if parts <= 8 else 8 if parts <= 128 else 32


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is no smaller."""
    return 1 << max(0, size - 1).bit_length()


def lanes_for(columns: int) -> int:
    """Return how many neighbouring threads take neighbouring columns: a power of two up to a warp."""
    return min(32, power_of_two(columns))


# T[q] = sum over tiles of columns
@cache
def finish_errors(real: Any) -> Kernel:
    """Return the kernel from the last layer's sums (tiles, rows) to the errors (B n,), from number `begin` on."""

    def kernel(sums, tiles, count, begin, errors):
        q = int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        if q < count:
            errors[begin + q] = real(added(sums, tiles, count, q))

    return Kernel(f"finish_errors {real}", kernel, (pointer(real), int64, int64, int64, pointer(real)), THREADS, 1)


# da = f'(a) dh,   dh the sum over parts
@cache
def activation_gradient(real: Any) -> Kernel:
    """Return the kernel from the parts of dh (parts, rows, I) to da, in place of the activation's slope (rows, I)."""

    def kernel(sums, parts, size, slope):
        at = int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        if at < size:
            slope[at] = real(added(sums, parts, size, at) * slope[at])

    return Kernel(f"activation_gradient {real}", kernel, (pointer(real), int64, int64, pointer(real)), THREADS, 1)


# dW = scale sum over parts and chunks,   dc likewise
@cache
def parameter_gradient(real: Any, groups: int, symmetric: bool = False) -> Kernel:
    """Return the kernel from a chunk's parts (parts, O I + O) to the gradients of a layer's weight and bias.

    So many groups of threads share the parts out; `starts` and `ends` say whether the chunk is the first and the last.
    Of a symmetric matrix the half up to the diagonal is read.
    """
    lanes = THREADS // groups
    shift, last = int32(lanes.bit_length() - 1), lanes - 1

    @device
    def source(at, weights, size):
        if symmetric and at < weights:
            row, column = at // size, at % size
            return max(row, column) * size + min(row, column)
        return at

    def kernel(sums, parts, weights, biases, starts, ends, scale, waiting, dw, dc, by_weight, by_bias):
        shared = cuda.shared.array(THREADS, float64)
        t = int64(cuda.threadIdx.x & MASK)
        at, size = int64(cuda.blockIdx.x) * lanes + (t & last), weights + biases
        add_in_groups(shared, sums, parts, size, source(at, weights, biases), t, shift)
        if t < lanes and at < size:
            total = shared[t] if starts else shared[t] + waiting[at]
            if not ends:
                waiting[at] = total
            elif at < weights:
                if by_weight:
                    dw[at] = real(total * scale)
            elif by_bias:
                dc[at - weights] = real(total * scale)

    wide, numbers = pointer(float64), pointer(real)
    flags = (int32, int32)
    return Kernel(
        f"parameter_gradient {real} {groups} {symmetric}",
        kernel,
        (numbers, int64, int64, int64, *flags, float64, wide, numbers, numbers, *flags),
        THREADS,
        1,
    )
