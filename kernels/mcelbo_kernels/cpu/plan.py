"""How a problem is laid out for a pass: what is compiled, padding, offsets, buffers as long as a chunk."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mcelbo_kernels.cpu import buffers
from mcelbo_kernels.cpu.buffers import Chunk, Inputs, Scratch, Totals, contiguous
from mcelbo_kernels.cpu.cell import QUADRATIC, Cell, padding_of
from mcelbo_kernels.cpu.memory import Workspace
from mcelbo_kernels.cpu.noise import key_of
from mcelbo_kernels.cpu.shape import Shape
from mcelbo_kernels.problem import Array, Need, Problem

# A chunk is long enough that the weight gradients' sums, kept in registers, are moved seldom, and short enough for the
# cache. Both depend on the problem alone, so that results do not change with the machine's load or threads.
ROWS_OF_A_CHUNK = 4128
FEWEST_ROWS_OF_A_CHUNK = 96
BYTES_OF_A_CHUNK = 4 << 20
# A task is long enough that taking it costs little and a panel of weights serves several tiles, and short enough that a
# chunk has some for every thread.
TILES_OF_A_TASK = 8
MULTIPLICATIONS_OF_A_TASK = 1 << 20
TASKS_OF_A_CHUNK = 8
# A layer is thin if its weights and their gradients leave room in the registers, which are as many as the lanes of one
# or more. A thin task's sums stay in the nearest cache.
LANES_OF_A_THIN_LATENT = 4
BYTES_OF_A_THIN_TASK = 24 << 10
TASKS_OF_A_THIN_CHUNK = 32
INT64 = np.dtype(np.int64)


class Layout(NamedTuple):
    """Where everything lies: `layers` as in `Inputs`, and how many numbers each buffer holds."""

    shape: Shape
    cell: Cell
    layers: Array
    capacity: int
    tiles: int  # of a task
    tasks: int  # of a chunk
    weights: int
    values: int
    totals: int


def lay_out(problem: Problem, need: Need, upstream: Array | None, shape: Shape, likelihood: str) -> Layout:
    """Choose what is compiled, how long a chunk is, and where each layer's numbers lie."""
    *hidden, output = (layer.activation.name for layer in problem.layers)
    weighted = (problem.weight is not None or need.x) and likelihood != QUADRATIC
    gradient = any((need.x, need.weight, need.mu, need.logvar)) or any(map(any, need.layers))
    thin = is_thin(problem, need, shape) and likelihood != QUADRATIC
    cell = Cell(output, tuple(dict.fromkeys(hidden)), likelihood, gradient, weighted, thin)
    if thin:
        shape = Shape(shape.real, problem.mu.shape[1] + 1, shape.columns, shape.lanes)

    def round_up(size: int) -> int:
        return -(-size // shape.width) * shape.width

    sizes = [layer.weight.shape for layer in problem.layers]
    columns = [(round_up(outputs), round_up(inputs + 1)) for outputs, inputs in sizes]
    capacity, tiles = thin_chunk(problem, shape) if thin else chunk(problem, need, gradient, columns, shape)
    table = np.zeros((len(problem.layers), buffers.FIELDS), np.int64)
    weights = values = totals = 0
    for row, size, (outputs, inputs), needed in zip(table, sizes, columns, need.layers, strict=True):
        row[buffers.OUTPUTS], row[buffers.INPUTS] = size
        row[buffers.PANELS], weights = weights, weights + outputs * (size[1] + 1)
        row[buffers.LEFT], values = values, values + inputs * capacity
        row[buffers.TOTAL] = -1
        if gradient and not thin:
            row[buffers.TRANSPOSED], weights = weights, weights + inputs * size[0]
            row[buffers.OUTPUT], values = values, values + outputs * capacity
        if any(needed):
            row[buffers.TOTAL], totals = totals, totals + outputs * (size[1] + 1)
    if thin:
        table[0, buffers.SCALED] = table[0, buffers.LEFT] if upstream is None else values
        values += 0 if upstream is None else columns[0][1] * capacity
    if likelihood == QUADRATIC:
        table[-1, buffers.OUTPUT] = table[-1, buffers.LEFT]
    for row, name in zip(table, hidden, strict=False):
        row[buffers.ACTIVATION] = cell.hidden.index(name)
    tasks = -(-capacity // (tiles * shape.rows))
    return Layout(shape, cell, table, capacity, tiles, tasks, weights, values, totals)


def is_thin(problem: Problem, need: Need, shape: Shape) -> bool:
    """Tell whether `thin` passes over the decoder: its tasks' sums must not outgrow a chunk."""
    latents, pixels = problem.mu.shape[1], problem.x.shape[1]
    sums = (latents + 1) * pixels * TASKS_OF_A_THIN_CHUNK * problem.x.itemsize
    few = 1 <= latents <= shape.lanes // LANES_OF_A_THIN_LATENT and sums <= BYTES_OF_A_CHUNK
    return len(problem.layers) == 1 and few and not (need.x or need.weight)


def thin_chunk(problem: Problem, shape: Shape) -> tuple[int, int]:
    """Return the rows of a thin chunk, and the tiles of its tasks."""
    tiles = max(1, BYTES_OF_A_THIN_TASK // (shape.rows * shape.rows * shape.lanes * problem.x.itemsize))
    capacity = equal_chunks(problem, TASKS_OF_A_THIN_CHUNK * tiles * shape.rows, shape)
    tasks = -(-capacity // (2 * tiles * shape.rows)) * 2
    return capacity, -(-capacity // (tasks * shape.rows))


def chunk(
    problem: Problem, need: Need, gradient: bool, columns: list[tuple[int, int]], shape: Shape
) -> tuple[int, int]:
    """Return the rows of a chunk, and the tiles of its tasks; `columns` are the padded (outputs, inputs) of layers."""
    of_a_row = sum(inputs + gradient * outputs for outputs, inputs in columns)
    beside = 2 * columns[0][1] + (need.x + need.weight) * columns[-1][0]
    affordable = BYTES_OF_A_CHUNK // max(1, (of_a_row + beside) * problem.x.itemsize)
    longest = min(ROWS_OF_A_CHUNK, max(FEWEST_ROWS_OF_A_CHUNK, affordable))
    capacity = equal_chunks(problem, longest, shape)
    of_a_tile = shape.rows * sum(outputs * inputs for outputs, inputs in columns)
    longest = max(TILES_OF_A_TASK, MULTIPLICATIONS_OF_A_TASK // of_a_tile)
    return capacity, max(1, min(longest, capacity // (shape.rows * TASKS_OF_A_CHUNK)))


def equal_chunks(problem: Problem, longest: int, shape: Shape) -> int:
    """Return the rows of chunks of one length, in whole tiles."""
    rows: int = problem.x.shape[0] * problem.draw.num_samples
    chunks = max(1, -(-rows // longest))
    return max(1, -(-rows // (chunks * shape.rows))) * shape.rows


def prepare(
    problem: Problem, need: Need, upstream: Array | None, centre: Array | None, layout: Layout, memory: Workspace
) -> Inputs:
    """Pad the pixels to whole panels; a sample weighs 1/n where there is no upstream."""
    draw, real, width = problem.draw, problem.x.dtype, layout.shape.width
    pixels, padding = problem.x.shape[1], -problem.x.shape[1] % width
    weight = np.empty((0, pixels), real) if problem.weight is None else problem.weight
    return Inputs(
        x=padded(problem.x, padding, memory),
        weight=padded(weight, padding, memory),
        weight_stride=pixels + padding if weight.shape[0] > 1 else 0,
        mu=contiguous(problem.mu),
        sigma=np.exp(contiguous(problem.logvar) * real.type(0.5)),
        layers=layout.layers,
        parameters=np.array([layer.activation.parameter for layer in problem.layers], real),
        eps=np.empty((0, 0, 0), real) if draw.eps is None else contiguous(draw.eps),
        centre=np.empty((0, 0), real) if centre is None else padded(centre, padding, memory),
        upstream=np.empty((0, 0), real) if upstream is None else contiguous(upstream.astype(real, copy=False)),
        key=key_of(draw, problem.mu.shape[1]),
        num_samples=draw.num_samples,
        lowest=lowest(need),
        padding=padding_of(layout.cell),
        scale=1.0 / draw.num_samples if upstream is None else 1.0,
    )


def lowest(need: Need) -> int:
    """Return the first layer whose pre-activations' gradient is needed, -1 if that of the samples is."""
    if need.mu or need.logvar:
        return -1
    return next((index for index, layer in enumerate(need.layers) if any(layer)), len(need.layers) - 1)


def padded(array: Array, padding: int, memory: Workspace) -> Array:
    """Return the array with `padding` columns of zeros behind it, contiguous in any case."""
    if not padding:
        return contiguous(array)
    rows, pixels = array.shape
    result = memory.take((rows, pixels + padding), array.dtype)
    result[:, :pixels], result[:, pixels:] = array, 0
    return result


def chunk_buffers(layout: Layout, inputs: Inputs, need: Need, memory: Workspace) -> Chunk:
    """Allocate the buffers of one chunk, which its threads share."""
    latent, pixels, real = inputs.mu.shape[1], inputs.x.shape[1], inputs.x.dtype
    capacity, width = layout.capacity, layout.shape.width
    nothing, of_pixels = (0, 0, 0), (pixels // width, capacity, width)
    cell = layout.cell
    of_latents = (-(-latent // width), capacity, width)
    values, ones = memory.take((layout.values,), real), memory.take((capacity,), real)
    ones.fill(1)
    if cell.likelihood == QUADRATIC and len(inputs.layers) == 1:
        values.fill(0)  # nobody writes the columns behind the latents, which a quadratic form multiplies with 0
    return Chunk(
        datum=memory.zeros((capacity,), INT64),
        g=ones,
        weights=memory.take((layout.weights,), real),
        values=values,
        spread=memory.take(of_latents, real),
        dz=memory.take(of_latents if inputs.lowest < 0 or cell.thin or cell.likelihood == QUADRATIC else nothing, real),
        dx=memory.take(of_pixels if need.x and cell.weighted else nothing, real),
        dw=memory.take(of_pixels if need.weight else nothing, real),
        errors=memory.zeros((capacity,)),
        sums=memory.take((layout.tasks, layout.totals if cell.thin and cell.gradient else 0), real),
    )


def thread_buffers(layout: Layout, inputs: Inputs, threads: int, memory: Workspace) -> Scratch:
    """Allocate the buffers of all threads."""
    shape, real = layout.shape, inputs.x.dtype
    rows = layout.tiles * shape.rows
    partial = memory.zeros((threads, layout.tiles, shape.rows, shape.lanes), real)
    return Scratch(
        eps=memory.take((threads, rows, inputs.mu.shape[1]), real),
        sums=memory.take((threads, 1, shape.rows, shape.width), real),
        partial=partial,
        dz=memory.zeros((threads, rows if layout.cell.thin else 0, shape.rows - 1, shape.lanes), real),
    )


def empty_totals(layout: Layout, inputs: Inputs, need: Need, errors: Array, memory: Workspace) -> Totals:
    """Return zeros for what is needed, beside the place for every T; the first chunk starts the layers' sums."""
    batch, latent = inputs.mu.shape
    posterior = (batch, latent) if need.mu or need.logvar else (0, 0)
    return Totals(
        errors=errors.reshape(-1),
        moments=memory.zeros((batch, 3)),
        layers=memory.take((layout.totals,)),
        mu=memory.zeros(posterior),
        logvar=memory.zeros(posterior),
        x=memory.zeros(inputs.x.shape if need.x else (0, 0)),
        weight=memory.zeros(inputs.weight.shape if need.weight else (0, 0)),
    )
