"""The sums over each datum's rows, in float64: moments, and the gradients of posteriors, data and pixel weights.

A datum's rows may begin in one chunk and end in another. Its sums wait between them; the chunk in which the datum ends
turns them into the result. In a chunk of rows begin to begin + count - 1 of all samples, a datum b has the rows from
max(b n, begin) on, the first of them b = begin // n.

A block takes a datum and `lanes` neighbouring columns, and its groups of threads share the rows out, `AT_ONCE` a turn,
as one would leave memory waiting. Few data of many rows would leave most of the device idle: each is cut into parts of
`piece` rows, which blocks of a first launch add up, and those of a second one the parts. Blocks count along x, which
goes far, and parts along y.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from mcelbo_kernels.cuda.noise import ROWS_OF_A_THREAD, draws, source_type
from mcelbo_kernels.cuda.scalars import binding
from mcelbo_kernels.cuda.seam import Kernel, cuda, device, float32, float64, int64, pointer, tuple_of
from mcelbo_kernels.cuda.sums import LANES_OF_PIXELS, MASK, THREADS, added, halving
from mcelbo_kernels.numerics.elementary import exp

AT_ONCE = ROWS_OF_A_THREAD  # since that many rows' noise is drawn together
INFINITY = float("inf")
# All in one launch, or in two: what their names end in.
WHOLE, IN_PARTS, OF_PARTS = "", "_in_parts", "_of_parts"


class Sum(NamedTuple):
    """A sum over a datum's rows, as device functions.

    `rows` is (begin, count, n, columns, first, data, parts, piece, offset): rows begin to begin + count - 1 of all, n
    of each datum, of which so many from the first on have some among them. A thread's turn begins where the sample and
    the offset together are a multiple of `AT_ONCE`. `place` is (b, k, start, begins, ends): datum, column, the datum's
    first row in the chunk, and whether it is its first and whether its last is here.

    Attributes
    ----------
    values : int
        Numbers of each column.
    open : (given, rows, place, waiting) -> about
        What is known before, which is loaded beside the rows.
    add : (given, rows, place, about, q, low, high, own) -> None
        Add rows q to q + AT_ONCE - 1 of the chunk, if they are among low to high - 1, to `own` (values,).
    close : (given, rows, place, about, own, waiting, results) -> None
        Leave the sums waiting, or make results of them.
    """

    values: int
    open: Any
    add: Any
    close: Any


@device
def rows_of_datum(b, begin, count, n):
    """Return a datum's first row in the chunk, and the row behind its last."""
    return max(b * n, begin) - begin, min((b + 1) * n, begin + count) - begin


@device
def rows_at_once(sums, parts, size, width, k, q, low, high, totals):
    """Add up column k of rows q to q + AT_ONCE - 1 over the parts; rows outside low to high - 1 are anything."""
    for r in range(AT_ONCE):
        totals[r] = float64(0)
    for part in range(parts):
        for r in range(AT_ONCE):
            totals[r] += sums[part * size + min(max(q + r, low), high - 1) * width + k]


def stage_of(name: str, stage: str, lanes: int, real: Any, sum_of: Sum, given: Any, results: Any) -> Kernel:
    """Return the kernel (given, rows, left, waiting, results) of a stage.

    Between the two launches sums lie in `left` (parts, values, data, columns).
    """
    values, start_with, add_rows, close = sum_of
    groups, shift, last, size = THREADS // lanes, lanes.bit_length() - 1, lanes - 1, values * THREADS
    in_parts, of_parts, halve = stage == IN_PARTS, stage == OF_PARTS, halving(lanes, values)

    def kernel(given, rows, left, waiting, results):
        shared = cuda.shared.array(size, float64)
        own = cuda.local.array(values, float64)
        t = int64(cuda.threadIdx.x & MASK)
        begin, count, n, columns, first, data, parts, piece, offset = rows
        across, strip, part = (columns + last) >> shift, int64(cuda.blockIdx.x), int64(cuda.blockIdx.y)
        number = strip // across
        k, b = (strip - number * across) * lanes + (t & last), first + number
        start, stop = rows_of_datum(b, begin, count, n)
        place = b, min(k, columns - 1), start, begin + start == b * n, begin + stop == (b + 1) * n
        about = start_with(given, rows, place, waiting)
        at, numbers = number * columns + k, data * columns
        for v in range(values):
            own[v] = float64(0)
        if k < columns:
            if of_parts:
                for v in range(values):
                    own[v] = added(left, parts, values * numbers, v * numbers + at, t >> shift, groups)
            else:
                low = start + part * piece
                high = min(stop, low + piece)
                aligned = low - ((begin + low - b * n + offset) & (AT_ONCE - 1))
                for q in range(aligned + (t >> shift) * AT_ONCE, high, groups * AT_ONCE):
                    add_rows(given, rows, place, about, q, low, high, own)
        for v in range(values):
            shared[v * THREADS + t] = own[v]
        halve(shared, t)
        if t < lanes and k < columns:
            for v in range(values):
                own[v] = shared[v * THREADS + t]
                if in_parts:
                    left[(part * values + v) * numbers + at] = own[v]
            if not in_parts:
                close(given, rows, place, about, own, waiting, results)

    wide = pointer(float64)
    signature = (given, tuple_of(*[int64] * 9), wide, wide, results)
    first_name, _, options = name.partition(" ")
    # which is how profilers call it
    kernel.__qualname__ = f"{first_name}{stage}.<locals>.kernel"
    # as many blocks at once as spill no register
    return Kernel(f"{first_name}{stage} {options}", kernel, signature, THREADS, 3 if real == float32 else 2)


# mean[b] = shift + s / n,   squares[b] = s2 - s^2 / n,   s = sum_i (T - shift),   s2 = sum_i (T - shift)^2
@cache
def moments(real: Any, beside: bool = False, stage: str = WHOLE) -> Kernel:
    """Return the kernel that adds a chunk's errors to (shift, s, s2) of each datum: the shift is the first error.

    `beside` says that errors[b] = T[b, i] - constant[b], of which the mean alone knows.
    """

    @device
    def so_far(given, rows, place, waiting):
        sums, tiles, _ = given
        b, _, start, begins, _ = place
        if begins:
            shift = added(sums, tiles, rows[1], start)
            # a difference of infinities would be NaN
            return (shift if abs(shift) < INFINITY else float64(0)), float64(0), float64(0)
        return waiting[3 * b], waiting[3 * b + 1], waiting[3 * b + 2]

    @device
    def add(given, rows, place, about, q, low, high, own):
        totals = cuda.local.array(AT_ONCE, float64)
        rows_at_once(given[0], given[1], rows[1], 1, 0, q, low, high, totals)
        for r in range(AT_ONCE):
            shifted = totals[r] - about[0] if low <= q + r < high else float64(0)
            own[0] += shifted
            own[1] += shifted * shifted

    @device
    def close(given, rows, place, about, own, waiting, results):
        b, _, _, _, ends = place
        n, constant, (mean, squares) = rows[2], given[2], results
        s, s2 = about[1] + own[0], about[2] + own[1]
        if not ends:
            waiting[3 * b], waiting[3 * b + 1], waiting[3 * b + 2] = about[0], s, s2
        else:
            further = s / n
            square = s2 - s * further
            mean[b] = about[0] + further + (constant[b] if beside else float64(0))
            squares[b] = float64(0) if square < 0 else square

    wide = pointer(float64)
    given, name = tuple_of(pointer(real), int64, wide), f"moments {real} {beside}"
    return stage_of(name, stage, 1, real, Sum(2, so_far, add, close), given, tuple_of(wide, wide))


# dmu[b] = scale sum_q g dz[q],   dlogvar[b] = scale sum_q g dz[q] s[q] / 2
@cache
def latent_gradient(sampler: str, real: Any, lanes: int, upstream: bool, stage: str = WHOLE) -> Kernel:
    """Return the kernel from the parts of dz (parts, rows, d) to the posterior's gradients; eps is drawn again."""
    four, exponential, half = draws(sampler, real).four, binding(real)(exp), real(0.5)

    @device
    def half_deviation(given, rows, place, waiting):
        return half * exponential(half * given[3][place[0] * rows[3] + place[1]])

    @device
    def add(given, rows, place, about, q, low, high, own):
        dz, parts, g, _, noise, _ = given
        begin, d, (b, k, _, _, _) = rows[0], rows[3], place
        eps, totals = cuda.local.array(AT_ONCE, real), cuda.local.array(AT_ONCE, float64)
        rows_at_once(dz, parts, rows[1] * d, d, k, q, low, high, totals)
        four(noise, eps, b, begin + q - b * rows[2], k, low - q, high - q)
        for r in range(AT_ONCE):
            total = totals[r]
            if upstream:
                total *= g[begin + min(max(q + r, low), high - 1)]
            if low <= q + r < high:
                own[0] += total
                own[1] += total * eps[r]

    @device
    def close(given, rows, place, about, own, waiting, results):
        b, k, _, begins, ends = place
        scale, (dmu, dlogvar), at = given[5], results, b * rows[3] + k
        mean, variance = own[0], own[1]
        if not begins:
            mean, variance = mean + waiting[2 * at], variance + waiting[2 * at + 1]
        if not ends:
            waiting[2 * at], waiting[2 * at + 1] = mean, variance
        else:
            # sigma / 2 is the same for all of them
            dmu[at], dlogvar[at] = real(mean * scale), real(variance * about * scale)

    numbers = pointer(real)
    given = tuple_of(numbers, int64, numbers, numbers, source_type(sampler, real), float64)
    name, sum_of = f"latent_gradient {sampler} {real} {lanes} {upstream}", Sum(2, half_deviation, add, close)
    return stage_of(name, stage, lanes, real, sum_of, given, tuple_of(numbers, numbers))


# dx[b] = scale sum_q g dx[q],   and dw[b] likewise
@cache
def pixel_gradient(real: Any, upstream: bool, stage: str = WHOLE) -> Kernel:
    """Return the kernel from the rows' gradients (rows, m) to those of each datum's pixels.

    `n` is the number of rows of a datum, or of all where the batch shares its weights.
    """

    @device
    def nothing(given, rows, place, waiting):
        return 0

    @device
    def add(given, rows, place, about, q, low, high, own):
        of_rows, g, _ = given
        totals = cuda.local.array(AT_ONCE, float64)
        rows_at_once(of_rows, 1, 0, rows[3], place[1], q, low, high, totals)
        for r in range(AT_ONCE):
            total = totals[r]
            if upstream:
                total *= g[rows[0] + min(max(q + r, low), high - 1)]
            own[0] += total if low <= q + r < high else float64(0)

    @device
    def close(given, rows, place, about, own, waiting, results):
        b, k, _, begins, ends = place
        scale, result, at = given[2], results, b * rows[3] + k
        total = own[0] if begins else own[0] + waiting[at]
        if not ends:
            waiting[at] = total
        else:
            result[at] = real(total * scale)

    numbers = pointer(real)
    name, sum_of = f"pixel_gradient {real} {upstream}", Sum(1, nothing, add, close)
    return stage_of(name, stage, LANES_OF_PIXELS, real, sum_of, tuple_of(numbers, numbers, float64), numbers)
