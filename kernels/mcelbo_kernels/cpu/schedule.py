"""From a `Problem` to the fused pass and back: padding, packing, buffers, gradients in the shapes of their inputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from mcelbo_kernels.cpu.board import close, new_board
from mcelbo_kernels.cpu.buffers import Chunk, Inputs, Scratch, Totals, contiguous
from mcelbo_kernels.cpu.cell import Cell
from mcelbo_kernels.cpu.crew import call_on_helpers
from mcelbo_kernels.cpu.grid import work
from mcelbo_kernels.cpu.noise import key_of
from mcelbo_kernels.cpu.tile import Shape, host_shape
from mcelbo_kernels.problem import Array, Gradients, Moments, Need, Problem, check_upstream

# A chunk is long enough that the weight gradients' sums, kept in registers, are moved seldom, and short enough for the
# cache. Both depend on the problem alone, so that results do not change with the machine's load or threads.
ROWS_OF_A_CHUNK = 512
BYTES_OF_A_CHUNK = 4 << 20
CACHE_LINE = 64
# A call into the kernel returns after so many chunks, so that Ctrl-C is heard.
CHUNKS_OF_A_CALL = 64
# Below so many multiplications a helper is not worth waking.
WORTH_A_HELPER = 1 << 22
NOTHING = Need(False, False, False, False, ((False, False),))

# What was compiled in this process: helpers are called only then, because a thread that compiles can meet a lock that
# the importing thread holds.
compiled: set[tuple[Shape, Cell]] = set()


# Infinities are results here, and NumPy would warn of them.
quietly = np.errstate(over="ignore", invalid="ignore")


@quietly
def errors(problem: Problem, threads: int = 1) -> Array:
    """Return T[b, i] = sum_j w[b, j] (x[b, j] - y[b, i, j])^2.

    Parameters
    ----------
    problem : Problem
        With a decoder of one layer.
    threads : int
        How many threads may take part; the result does not depend on it.

    Returns
    -------
    ndarray, shape (B, n), in the dtype of the problem

    Raises
    ------
    ValueError
        If the decoder has several layers.

    Examples
    --------
    >>> from mcelbo_kernels.problem import Draw, Layer
    >>> layer = Layer(np.ones((2, 1)), np.zeros(2))
    >>> errors(Problem(np.array([[1.0, 2.0]]), np.zeros((1, 1)), np.zeros((1, 1)), (layer,), Draw(2, seed=7))).shape
    (1, 2)
    """
    result = np.empty((problem.x.shape[0], problem.draw.num_samples), problem.x.dtype)
    run(problem, NOTHING, None, result, threads)
    return result


@quietly
def value_and_gradients(problem: Problem, need: Need, threads: int = 1) -> tuple[Moments, Gradients]:
    """Return the moments of T and the gradients of sum_b mean_i T[b, i], in one pass that stores nothing of size n.

    Parameters
    ----------
    problem, threads
        As for `errors`.
    need : Need
        Which gradients to return; the others are None.

    Returns
    -------
    Moments
        mean[b] = mean_i T[b, i] and squares[b] = sum_i (T[b, i] - mean[b])^2.
    Gradients
        In the shapes and the dtype of their inputs.

    Raises
    ------
    ValueError
        If the decoder has several layers.

    Examples
    --------
    >>> from mcelbo_kernels.problem import Draw, Layer
    >>> layer = Layer(np.ones((2, 1)), np.zeros(2))
    >>> problem = Problem(np.array([[1.0, 2.0]]), np.zeros((1, 1)), np.zeros((1, 1)), (layer,), Draw(2, seed=7))
    >>> moments, gradients = value_and_gradients(problem, Need.everything(problem))
    >>> moments.mean.shape, gradients.mu.shape
    ((1,), (1, 1))
    """
    n = problem.draw.num_samples
    totals = run(problem, need, None, None, threads)
    shift, first, second = totals.moments.T
    mean = first / n
    # rounding must not leave a sum of squares below zero
    squares = np.maximum(second - first * mean, 0.0)
    return Moments(shift + mean, squares), collect(problem, need, totals, 1.0 / n)


@quietly
def gradients(problem: Problem, upstream: Array, need: Need, threads: int = 1) -> Gradients:
    """Return the vector-Jacobian product of T with `upstream`; the noise is drawn again.

    Parameters
    ----------
    problem, need, threads
        As for `value_and_gradients`.
    upstream : ndarray, shape (B, n)

    Returns
    -------
    Gradients

    Raises
    ------
    ValueError
        If the decoder has several layers, or `upstream` another shape.
    """
    check_upstream(upstream.shape, problem)
    return collect(problem, need, run(problem, need, upstream, None, threads), 1.0)


def run(problem: Problem, need: Need, upstream: Array | None, errors: Array | None, threads: int) -> Totals:
    """Run the pass; samples weigh `upstream` (B, n), ones where None, and leave their T in `errors` (B, n) if given."""
    if len(problem.layers) != 1:
        raise ValueError(f"the decoder has {len(problem.layers)} layers: the fused pass takes one affine layer")
    real = problem.x.dtype
    shape, cell = host_shape(real.name), Cell(problem.layers[0].activation.name, any(flags(need)))
    inputs = prepare(problem, shape)
    totals = empty_totals(shape, inputs, need, np.empty((0, 0), real) if errors is None else errors)
    weights = np.empty((0, 0), real) if upstream is None else contiguous(upstream.astype(real, copy=False))
    rows = problem.x.shape[0] * problem.draw.num_samples
    chunk = chunk_buffers(shape, cell, inputs, rows, need)
    helpers = threads - 1 if rows * inputs.panels.size >= WORTH_A_HELPER else 0
    stride = CHUNKS_OF_A_CALL * chunk.datum.size
    for begin in range(0, rows, stride):
        share(shape, cell, inputs, weights, begin, min(begin + stride, rows), chunk, totals, helpers)
    return totals


def share(
    shape: Shape,
    cell: Cell,
    inputs: Inputs,
    weights: Array,
    begin: int,
    end: int,
    chunk: Chunk,
    totals: Totals,
    helpers: int,
) -> None:
    """Take rows begin to end, with helpers if there are any."""
    board = new_board()

    def take_part(leads: bool) -> None:
        scratch = thread_buffers(shape, inputs)
        work(shape, cell, inputs, weights, begin, end, chunk, scratch, totals, board, leads)

    try:
        if helpers and (shape, cell) in compiled:
            call_on_helpers(lambda: take_part(False), helpers)
        take_part(True)
    finally:
        # An interrupt may come before the leader leads: helpers must not wait for it then.
        close(board)
    compiled.add((shape, cell))


def flags(need: Need) -> tuple[bool, ...]:
    """Return the needs one after another."""
    return need.x, need.weight, need.mu, need.logvar, *(flag for layer in need.layers for flag in layer)


def prepare(problem: Problem, shape: Shape) -> Inputs:
    """Pad the pixels to whole panels (padding is a pixel of weight 0) and pack the decoder's panels."""
    layer, draw, real = problem.layers[0], problem.draw, problem.x.dtype
    pixels, padding = problem.x.shape[1], -problem.x.shape[1] % shape.width
    weight = problem.weight
    if weight is None:
        weight = np.ones((1 if padding else 0, pixels), real)
    return Inputs(
        x=padded(problem.x, padding),
        weight=padded(weight, padding),
        weight_stride=pixels + padding if weight.shape[0] > 1 else 0,
        mu=contiguous(problem.mu),
        sigma=np.exp(contiguous(problem.logvar) * real.type(0.5)),
        panels=packed(layer.weight, layer.bias, shape.width, padding),
        parameter=real.type(layer.activation.parameter),
        eps=np.empty((0, 0, 0), real) if draw.eps is None else contiguous(draw.eps),
        key=key_of(draw, problem.mu.shape[1]),
        num_samples=draw.num_samples,
    )


def padded(array: Array, padding: int) -> Array:
    """Return the array with `padding` columns of zeros behind it, contiguous in any case."""
    if not padding:
        return contiguous(array)
    rows, pixels = array.shape
    result = np.zeros((rows, pixels + padding), array.dtype)
    result[:, :pixels] = array
    return result


def packed(weight: Array, bias: Array, width: int, padding: int) -> Array:
    """Return panels (P, d + 1, width) of `width` pixels: d rows of the transposed weight, then the bias."""
    pixels, latent = weight.shape
    count = (pixels + padding) // width
    panels = aligned((count, latent + 1, width), weight.dtype)
    panels[:, :latent] = padded(weight.T, padding).reshape(latent, count, width).transpose(1, 0, 2)
    panels[:, latent] = padded(bias[None], padding).reshape(count, width)
    return panels


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return zeros that start on a cache line, so that no vector straddles two."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    store = np.zeros(size + CACHE_LINE, np.uint8)
    start = -store.ctypes.data % CACHE_LINE
    return store[start : start + size].view(kind).reshape(shape)


def chunk_buffers(shape: Shape, cell: Cell, inputs: Inputs, rows: int, need: Need) -> Chunk:
    """Allocate the buffers of one chunk, which its threads share."""
    latent, pixels, real = inputs.mu.shape[1], inputs.x.shape[1], inputs.x.dtype
    affordable = min(ROWS_OF_A_CHUNK, BYTES_OF_A_CHUNK // max(1, pixels * real.itemsize))
    capacity = max(1, min(affordable // shape.rows, -(-rows // shape.rows))) * shape.rows
    panels = pixels // shape.width
    grid = (panels, capacity, shape.width)
    return Chunk(
        datum=np.zeros(capacity, np.int64),
        g=np.ones(capacity, real),
        eps=aligned((capacity, latent), real),
        z=aligned((capacity, round_up(latent + 1, shape.rows)), real),
        a=aligned(grid if cell.gradient else (0, 0, 0), real),
        dx=aligned(grid if need.x else (0, 0, 0), real),
        dw=aligned(grid if need.weight else (0, 0, 0), real),
        errors=np.zeros(capacity),
        dz=aligned((capacity, latent + 1), real),
    )


def thread_buffers(shape: Shape, inputs: Inputs) -> Scratch:
    """Allocate the buffers of one thread."""
    real = inputs.x.dtype
    tile = (shape.rows, shape.width)
    return Scratch(
        a=aligned((1, *tile), real),
        column=aligned((inputs.mu.shape[1], shape.rows), real),
        partial=aligned((shape.rows, shape.lanes), real),
        sums=aligned(tile, real),
    )


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is no less than `value`."""
    return -(-value // unit) * unit


def empty_totals(shape: Shape, inputs: Inputs, need: Need, errors: Array) -> Totals:
    """Return zeros for what is needed, beside the place for every T."""
    (batch, latent), pixels = inputs.mu.shape, inputs.x.shape[1]
    posterior = (batch, latent) if need.mu or need.logvar else (0, 0)
    layer = any(flag for pair in need.layers for flag in pair)
    return Totals(
        errors=errors.reshape(-1),
        moments=np.zeros((batch, 3)),
        panels=np.zeros((pixels // shape.width if layer else 0, round_up(latent + 1, shape.rows), shape.width)),
        mu=np.zeros(posterior),
        logvar=np.zeros(posterior),
        x=np.zeros((batch, pixels) if need.x else (0, 0)),
        weight=np.zeros(inputs.weight.shape if need.weight else (0, 0)),
    )


def collect(problem: Problem, need: Need, totals: Totals, scale: float) -> Gradients:
    """Return the gradients that are needed in the shapes and the dtype of their inputs."""
    (pixels, latent), real = problem.layers[0].weight.shape, problem.x.dtype

    def result(wanted: bool, total: Array) -> Array | None:
        return (total * scale).astype(real, order="C") if wanted else None

    by_pixel = totals.panels.transpose(0, 2, 1).reshape(-1, totals.panels.shape[1])[:pixels]
    weight, bias = need.layers[0]
    return Gradients(
        x=result(need.x, totals.x[:, :pixels]),
        weight=result(need.weight, totals.weight[:, :pixels]),
        mu=result(need.mu, totals.mu),
        logvar=result(need.logvar, totals.logvar),
        layers=((result(weight, by_pixel[:, :latent]), result(bias, by_pixel[:, latent])),),
    )
