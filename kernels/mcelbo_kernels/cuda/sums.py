"""The second stage: what blocks left is added up in float64, in an order that the problem alone decides.

A datum's rows may begin in one chunk and end in another. Its sums wait in float64 between them; the chunk in which the
datum ends turns them into the result. In a chunk of rows begin to begin + count - 1 of all samples, the datum of block
number k has the rows from max(b n, begin) on, with b = begin // n + k. Blocks count along x alone, which goes far.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from mcelbo_kernels.cuda.noise import draws, source_type
from mcelbo_kernels.cuda.scalars import binding
from mcelbo_kernels.cuda.seam import Kernel, cuda, device, float64, int32, int64, pointer
from mcelbo_kernels.numerics.elementary import exp

THREADS, LANES_OF_PIXELS = 256, 32
MASK = THREADS - 1
INFINITY = float("inf")


@device
def rows_of_datum(number, begin, count, n):
    """Return a datum of the chunk, its first row there, the row behind its last, and whether it ends there."""
    b = begin // n + number
    start, stop = max(b * n, begin) - begin, min((b + 1) * n, begin + count) - begin
    return b, start, stop, (b + 1) * n <= begin + count


@device
def added(sums, parts, size, at):
    """Return number `at` of a matrix of so many numbers, which lies in parts, one behind the other."""
    total = float64(0)
    for part in range(parts):
        total += sums[part * size + at]
    return total


@device
def halve(shared, t, lanes):
    """Add up shared[lane], shared[lane + lanes], ... into shared[lane]; `lanes` is a power of two."""
    cuda.syncthreads()
    apart = THREADS // 2
    while apart >= lanes:
        if t < apart:
            shared[t] += shared[t + apart]
        cuda.syncthreads()
        apart >>= 1


def halving(lanes: int) -> Any:
    """Return `halve` for a number of lanes that is known when it is compiled."""

    @device
    def add(shared, t):
        halve(shared, t, lanes)

    return add


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


# mean[b] = shift + s / n,   squares[b] = s2 - s^2 / n,   s = sum_i (T - shift),   s2 = sum_i (T - shift)^2
@cache
def moments(real: Any, beside: bool = False) -> Kernel:
    """Return the kernel that adds a chunk's errors to (shift, s, s2) of each datum: the shift is the first error.

    `beside` says that errors[b] = T[b, i] - constant[b], of which the mean alone knows.
    """
    halve = halving(1)

    def kernel(sums, tiles, begin, count, n, waiting, constant, mean, squares):
        first_order = cuda.shared.array(THREADS, float64)
        second_order = cuda.shared.array(THREADS, float64)
        t = int64(cuda.threadIdx.x & MASK)
        b, start, stop, ends = rows_of_datum(int64(cuda.blockIdx.x), begin, count, n)
        if begin + start == b * n:
            shift = added(sums, tiles, count, start)
            # a difference of infinities would be NaN
            shift = shift if abs(shift) < INFINITY else float64(0)
            s = s2 = float64(0)
        else:
            shift, s, s2 = waiting[3 * b], waiting[3 * b + 1], waiting[3 * b + 2]
        of_first = of_second = float64(0)
        for q in range(start + t, stop, THREADS):
            shifted = added(sums, tiles, count, q) - shift
            of_first += shifted
            of_second += shifted * shifted
        first_order[t], second_order[t] = of_first, of_second
        halve(first_order, t)
        halve(second_order, t)
        if t == 0:
            s, s2 = s + first_order[0], s2 + second_order[0]
            if not ends:
                waiting[3 * b], waiting[3 * b + 1], waiting[3 * b + 2] = shift, s, s2
            else:
                about = s / n
                square = s2 - s * about
                mean[b] = shift + about + (constant[b] if beside else float64(0))
                squares[b] = float64(0) if square < 0 else square

    signature = (pointer(real), int64, int64, int64, int64, *[pointer(float64)] * 4)
    return Kernel(f"moments {real} {beside}", kernel, signature, THREADS, 1)


# dmu[b] = scale sum_q g dz[q],   dlogvar[b] = scale sum_q g dz[q] s[q] / 2
@cache
def latent_gradient(sampler: str, real: Any, lanes: int, upstream: bool) -> Kernel:
    """Return the kernel from the parts of dz (parts, rows, d) to the posterior's gradients; eps is drawn again."""
    one, exponential, half, halve = draws(sampler, real).one, binding(real)(exp), real(0.5), halving(lanes)
    groups, shift, last = THREADS // lanes, lanes.bit_length() - 1, lanes - 1

    def kernel(dz, parts, g, logvar, noise, begin, count, scale, waiting, dmu, dlogvar):
        of_mu = cuda.shared.array(THREADS, float64)
        of_logvar = cuda.shared.array(THREADS, float64)
        t = int64(cuda.threadIdx.x & MASK)
        n, d = noise[2], noise[3]
        across = (d + last) >> shift
        number = int64(cuda.blockIdx.x) // across
        b, start, stop, ends = rows_of_datum(number, begin, count, n)
        k = (int64(cuda.blockIdx.x) - number * across) * lanes + (t & last)
        mean = variance = float64(0)
        if k < d:
            for q in range(start + (t >> shift), stop, groups):
                total = added(dz, parts, count * d, q * d + k)
                if upstream:
                    total *= g[begin + q]
                mean += total
                variance += total * one(noise, b, begin + q - b * n, k)
        of_mu[t], of_logvar[t] = mean, variance
        halve(of_mu, t)
        halve(of_logvar, t)
        if t < lanes and k < d:
            at = b * d + k
            mean, variance = of_mu[t], of_logvar[t]
            if begin + start != b * n:
                mean, variance = mean + waiting[2 * at], variance + waiting[2 * at + 1]
            if not ends:
                waiting[2 * at], waiting[2 * at + 1] = mean, variance
            else:
                # sigma / 2 is the same for all of them
                deviation = half * exponential(half * logvar[at])
                dmu[at], dlogvar[at] = real(mean * scale), real(variance * deviation * scale)

    wide, numbers = pointer(float64), pointer(real)
    signature = (numbers, int64, numbers, numbers, source_type(sampler, real), int64, int64, float64)
    return Kernel(
        f"latent_gradient {sampler} {real} {lanes} {upstream}", kernel, (*signature, wide, numbers, numbers), THREADS, 1
    )


# dx[b] = scale sum_q g dx[q],   and dw[b] likewise
@cache
def pixel_gradient(real: Any, upstream: bool) -> Kernel:
    """Return the kernel from the rows' gradients (rows, m) to those of each datum's pixels.

    `n` is the number of rows of a datum, or of all where the batch shares its weights.
    """
    lanes = LANES_OF_PIXELS
    halve, groups, shift, last = halving(lanes), THREADS // lanes, lanes.bit_length() - 1, lanes - 1

    def kernel(rows, g, begin, count, n, pixels, scale, waiting, result):
        sums = cuda.shared.array(THREADS, float64)
        t = int64(cuda.threadIdx.x & MASK)
        across = (pixels + last) >> shift
        number = int64(cuda.blockIdx.x) // across
        b, start, stop, ends = rows_of_datum(number, begin, count, n)
        j = (int64(cuda.blockIdx.x) - number * across) * lanes + (t & last)
        total = float64(0)
        if j < pixels:
            for q in range(start + (t >> shift), stop, groups):
                value = float64(rows[q * pixels + j])
                total += value * g[begin + q] if upstream else value
        sums[t] = total
        halve(sums, t)
        if t < lanes and j < pixels:
            at = b * pixels + j
            total = sums[t] if begin + start == b * n else sums[t] + waiting[at]
            if not ends:
                waiting[at] = total
            else:
                result[at] = real(total * scale)

    wide, numbers = pointer(float64), pointer(real)
    return Kernel(
        f"pixel_gradient {real} {upstream}",
        kernel,
        (numbers, numbers, int64, int64, int64, int64, float64, wide, numbers),
        THREADS,
        1,
    )


# dW = scale sum over parts and chunks,   dc likewise
@cache
def parameter_gradient(real: Any, groups: int, symmetric: bool = False) -> Kernel:
    """Return the kernel from a chunk's parts (parts, O I + O) to the gradients of a layer's weight and bias.

    So many groups of threads share the parts out; `starts` and `ends` say whether the chunk is the first and the last.
    Of a symmetric matrix the half up to the diagonal is read.
    """
    lanes = THREADS // groups
    halve, shift, last = halving(lanes), lanes.bit_length() - 1, lanes - 1

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
        total = float64(0)
        if at < size:
            given = source(at, weights, biases)
            for part in range(t >> shift, parts, groups):
                total += sums[part * size + given]
        shared[t] = total
        halve(shared, t)
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
