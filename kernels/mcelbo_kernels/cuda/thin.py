"""One layer from a few latents, in one pass that keeps nothing of a pixel: each thread stays with its pixels.

A thread holds some pixels' weights and their gradients in registers and goes through a block's samples, which were
drawn into shared memory. What it has of a sample's error and of dz is added up over the block's threads, some samples
at a time, through shared memory in a fixed order:

    a = z W^T + c,   t = w cell(a, x),   T[q] += t,   dz[q] += da W,   dW += g da z[q],   dc += g da

The general pass writes da and reads it twice, 12 bytes for each of a sample's pixels. With d latents these take
6 d FLOPs and a cell of some 25 instructions, so that for few latents the traffic would be what takes the time.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from mcelbo_kernels.cuda.cell import evaluation
from mcelbo_kernels.cuda.epilogue import written_out
from mcelbo_kernels.cuda.noise import draws, source_type
from mcelbo_kernels.cuda.scalars import binding
from mcelbo_kernels.cuda.seam import Kernel, cuda, device, int32, int64, pointer
from mcelbo_kernels.cuda.tile import REGISTERS
from mcelbo_kernels.numerics.elementary import exp

MOST_LATENTS = 8
ROWS_OF_A_BLOCK = 128  # of a block, whose samples lie in shared memory
GROUPS = 8  # threads that add up one number over all threads of a block
MOST_THREADS = 1024
BYTES_OF_SUMS = 32 << 10  # of the 48 KB of shared memory that a block can have
MOST_PIXELS = 1 << 22  # so many fewer tiles than a grid can have along y


class Thin(NamedTuple):
    """What the kernel is compiled for.

    Attributes
    ----------
    real, activation, likelihood, sampler, gradient, weighted, upstream
        As of the kernels of `layers` and `samples`.
    latent : int
    columns, threads : int
        Pixels of a thread, which lie `threads` apart, and threads of a block, whole warps.
    """

    real: Any
    activation: str
    likelihood: str
    sampler: str
    gradient: bool
    weighted: bool
    upstream: bool
    latent: int
    columns: int
    threads: int

    @property
    def values(self) -> int:
        """Numbers that a sample leaves: its error, and dz."""
        return 1 + self.latent * self.gradient

    @property
    def rows(self) -> int:
        """Samples between two additions over the threads: each number has its group of them, and all room to lie."""
        room = BYTES_OF_SUMS * 8 // (self.real.bitwidth * self.values * (self.threads + 2 * GROUPS))
        return max(1, min(8, self.threads // (GROUPS * self.values), int(room)))


def most_columns(latent: int) -> int:
    """Return how many pixels of a thread there are registers for."""
    return 8 if latent <= 2 else 4


def shape_for(pixels: int, latent: int) -> tuple[int, int]:
    """Return the columns of a thread and the threads of a block that take the fewest instructions for a sample.

    That is for each pixel, those behind the last one counted, some 30 and 3 for each of its multiply-adds, and for each
    thread some 12 for each number of the sample that is added up over the threads.
    """

    def instructions(shape: tuple[int, int]) -> float:
        columns, threads = shape
        covered = -(-pixels // (columns * threads)) * columns * threads
        return covered * (30 + 9 * latent + 12 * (1 + latent) / columns)

    return min(
        ((columns, threads) for columns in range(1, most_columns(latent) + 1) for threads in range(96, 257, 32)),
        key=instructions,
    )


@cache
def thin(spec: Thin) -> Kernel:
    """Return the kernel that leaves T (tiles, rows), dz (tiles, rows, d) and the weights' gradients in parts.

    Block x takes rows x piece to (x + 1) piece - 1 of the chunk, block y a tile of threads x columns pixels. Parts are
    (blocks x, m d + m), the weight's gradient, then the bias's.
    """
    real, latent, columns, threads = spec.real, spec.latent, spec.columns, spec.threads
    gradient, weighted, upstream, numbers, zero = spec.gradient, spec.weighted, spec.upstream, pointer(real), real(0)
    batch, values, pitch, size = spec.rows, spec.values, threads + GROUPS, spec.latent * ROWS_OF_A_BLOCK
    width, one_of, of_groups = columns * threads, values * batch * pitch, values * batch * GROUPS
    with_bias, blocks = latent + 1, max(1, REGISTERS // (threads * 4 * real.bitwidth))
    sample, add_cells, add_threads = sampled(spec), written_out(columns, cell_of(spec)), sum_over_threads(spec)

    def kernel(
        mu, logvar, noise, weight, bias, parameter, x, w, apart, g, sums, dz, parts, begin, count, pixels, piece
    ):
        z = cuda.shared.array(size, real)
        datum = cuda.shared.array(ROWS_OF_A_BLOCK, int32)
        factor = cuda.shared.array(ROWS_OF_A_BLOCK, real)
        part = cuda.shared.array(one_of, real)
        group = cuda.shared.array(of_groups, real)
        of_pixel = cuda.local.array((columns, 3), real)  # c, x, w
        own = cuda.local.array((columns, latent), real)
        of_own = cuda.local.array((columns, with_bias), real)  # dW, dc
        total = cuda.local.array(with_bias, real)  # T, dz
        t = cuda.threadIdx.x & (MOST_THREADS - 1)
        first, column = int64(cuda.blockIdx.x) * piece, int64(cuda.blockIdx.y) * width + t
        rows = int32(min(piece, count - first))
        for c in range(columns):
            j = column + c * threads
            inside = j < pixels
            of_pixel[c, 0] = bias[j] if inside else zero
            for k in range(latent):
                own[c, k] = weight[j * latent + k] if inside else zero
                of_own[c, k] = zero
            of_own[c, latent] = zero
        for r in range(t, rows, threads):
            datum[r] = int32((begin + first + r) // noise[2])
            factor[r] = g[begin + first + r] if upstream else real(1)
        for item in range(t, rows * latent, threads):
            r, k = item // latent, item % latent
            z[item] = sample(mu, logvar, noise, begin + first + r, k)
        cuda.syncthreads()
        current = int32(-1)
        for start in range(0, rows, batch):
            stop = min(batch, rows - start)
            for r in range(stop):
                row = start + r
                if datum[row] != current:
                    current = datum[row]
                    for c in range(columns):
                        j = column + c * threads
                        inside = j < pixels
                        of_pixel[c, 1] = x[current * int64(pixels) + j] if inside else zero
                        of_pixel[c, 2] = (w[current * apart + j] if weighted else real(1)) if inside else zero
                for v in range(1 + latent):
                    total[v] = zero
                add_cells((z, row * latent, factor[row], of_pixel, own, of_own, total, column, pixels, parameter))
                for v in range(values):
                    part[(v * batch + r) * pitch + t] = total[v]
            add_threads(part, group, sums, dz, int64(cuda.blockIdx.y) * count + first + start, stop, t)
        if gradient:
            at = int64(cuda.blockIdx.x) * pixels * (latent + 1)
            for c in range(columns):
                j = column + c * threads
                if j < pixels:
                    for k in range(latent):
                        parts[at + j * latent + k] = of_own[c, k]
                    parts[at + int64(pixels) * latent + j] = of_own[c, latent]

    signature = (numbers, numbers, source_type(spec.sampler, real), numbers, numbers, real, numbers, numbers, int64)
    left = (numbers, numbers, numbers, numbers, int64, int64, int32, int64)
    return Kernel(f"thin {spec}", kernel, (*signature, *left), threads, blocks)


# z[q] = mu[b] + sigma[b] eps[b, i]
def sampled(spec: Thin) -> Any:
    """Return the device function (mu, logvar, noise, q, k) -> z of sample q of all, latent k."""
    one, exponential, half = draws(spec.sampler, spec.real).one, binding(spec.real)(exp), spec.real(0.5)

    @device
    def sample(mu, logvar, noise, q, k):
        n, d = noise[2], noise[3]
        b = q // n
        at = b * d + k
        return mu[at] + exponential(half * logvar[at]) * one(noise, b, q - b * n, k)

    return sample


def cell_of(spec: Thin) -> Any:
    """Return the device function (c, state) that adds pixel c of a thread to a sample's numbers and to its own."""
    latent, gradient, weighted, threads, zero = spec.latent, spec.gradient, spec.weighted, spec.threads, spec.real(0)
    evaluate = evaluation(spec.likelihood, spec.activation, spec.real)

    @device
    def add(c, state):
        z, at, factor, of_pixel, own, of_own, total, column, pixels, parameter = state
        a = of_pixel[c, 0]
        for k in range(latent):
            a = cuda.fma(z[at + k], own[c, k], a)
        t, da, _ = evaluate(a, of_pixel[c, 1], parameter)
        counts = column + c * threads < pixels
        if weighted:
            pixel = of_pixel[c, 2]
            counts = pixel != zero
            t, da = pixel * t, pixel * da
        t, da = t if counts else zero, da if counts else zero
        total[0] += t
        if gradient:
            scaled = da * factor
            for k in range(latent):
                total[1 + k] = cuda.fma(da, own[c, k], total[1 + k])
                of_own[c, k] = cuda.fma(scaled, z[at + k], of_own[c, k])
            of_own[c, latent] += scaled

    return add


def sum_over_threads(spec: Thin) -> Any:
    """Return the device function (part, group, sums, dz, at, rows, t) that adds up some samples' numbers."""
    threads, batch, latent, zero = spec.threads, spec.rows, spec.latent, spec.real(0)
    pitch, numbers = threads + GROUPS, spec.rows * spec.values

    @device
    def add(part, group, sums, dz, at, rows, t):
        cuda.syncthreads()
        number, own = t // GROUPS, t & (GROUPS - 1)
        if number < numbers and number % batch < rows:
            total = zero
            for other in range(threads // GROUPS):
                total += part[number * pitch + own + other * GROUPS]
            group[number * GROUPS + own] = total
        cuda.syncthreads()
        if t < numbers and t % batch < rows:
            total = zero
            for other in range(GROUPS):
                total += group[t * GROUPS + other]
            if t < batch:
                sums[at + t] = total
            else:
                dz[(at + t % batch) * latent + t // batch - 1] = total
        cuda.syncthreads()

    return add
