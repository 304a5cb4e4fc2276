"""How a problem is laid out for a pass: what is compiled, padding, offsets, buffers as long as a chunk."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mcelbo_kernels.cpu import buffers
from mcelbo_kernels.cpu.buffers import Chunk, Inputs, Scratch, Totals, contiguous
from mcelbo_kernels.cpu.cell import QUADRATIC, Cell
from mcelbo_kernels.cpu.memory import Workspace
from mcelbo_kernels.cpu.noise import key_of
from mcelbo_kernels.cpu.shape import Shape
from mcelbo_kernels.problem import Array, Need, Problem

# A chunk is long enough that the weight gradients' sums, kept in registers, are moved seldom, and short enough for the
# cache. Both depend on the problem alone, so that results do not change with the machine's load or threads.
ROWS_OF_A_CHUNK = 516
FEWEST_ROWS_OF_A_CHUNK = 96
BYTES_OF_A_CHUNK = 4 << 20
# A task is long enough that taking it costs little and a panel of weights serves several tiles, and short enough that a
# chunk has some for every thread.
TILES_OF_A_TASK = 8
TASKS_OF_A_CHUNK = 8


class Layout(NamedTuple):
    """Where everything lies: `layers` as in `Inputs`, and how many numbers each buffer holds."""

    shape: Shape
    cell: Cell
    layers: Array
    capacity: int
    tiles: int  # of a task
    weights: int
    values: int
    totals: int


def lay_out(problem: Problem, need: Need, shape: Shape, likelihood: str) -> Layout:
    """Choose what is compiled, how long a chunk is, and where each layer's numbers lie."""
    *hidden, output = (layer.activation.name for layer in problem.layers)
    # the padding of the pixels is excluded by a weight of 0
    weighted = problem.weight is not None or need.x or problem.x.shape[1] % shape.width > 0
    weighted = weighted and likelihood != QUADRATIC
    gradient = any((need.x, need.weight, need.mu, need.logvar)) or any(map(any, need.layers))
    cell = Cell(output, tuple(dict.fromkeys(hidden)), likelihood, gradient, weighted)

    def round_up(size: int) -> int:
        return -(-size // shape.width) * shape.width

    sizes = [layer.weight.shape for layer in problem.layers]
    columns = [(round_up(outputs), round_up(inputs + 1)) for outputs, inputs in sizes]
    of_a_row = sum(inputs + gradient * outputs for outputs, inputs in columns)
    beside = 2 * columns[0][1] + (need.x + need.weight) * columns[-1][0]
    capacity = rows_of_a_chunk(problem, of_a_row + beside, shape)
    table = np.zeros((len(problem.layers), buffers.FIELDS), np.int64)
    weights = values = totals = 0
    for row, size, (outputs, inputs), needed in zip(table, sizes, columns, need.layers, strict=True):
        row[buffers.OUTPUTS], row[buffers.INPUTS] = size
        row[buffers.PANELS], weights = weights, weights + outputs * (size[1] + 1)
        row[buffers.LEFT], values = values, values + inputs * capacity
        row[buffers.TOTAL] = -1
        if gradient:
            row[buffers.TRANSPOSED], weights = weights, weights + inputs * size[0]
            row[buffers.OUTPUT], values = values, values + outputs * capacity
        if any(needed):
            row[buffers.TOTAL], totals = totals, totals + outputs * (size[1] + 1)
    if likelihood == QUADRATIC:
        table[-1, buffers.OUTPUT] = table[-1, buffers.LEFT]
    for row, name in zip(table, hidden, strict=False):
        row[buffers.ACTIVATION] = cell.hidden.index(name)
    tiles = max(1, min(TILES_OF_A_TASK, capacity // (shape.rows * TASKS_OF_A_CHUNK)))
    return Layout(shape, cell, table, capacity, tiles, weights, values, totals)


def rows_of_a_chunk(problem: Problem, numbers: int, shape: Shape) -> int:
    """Return the length of equal chunks whose rows hold so many numbers each."""
    rows: int = problem.x.shape[0] * problem.draw.num_samples
    affordable: int = BYTES_OF_A_CHUNK // max(1, numbers * problem.x.itemsize)
    longest: int = min(ROWS_OF_A_CHUNK, max(FEWEST_ROWS_OF_A_CHUNK, affordable))
    chunks = max(1, -(-rows // longest))
    return max(1, -(-rows // (chunks * shape.rows))) * shape.rows


def prepare(
    problem: Problem, need: Need, upstream: Array | None, centre: Array | None, layout: Layout, memory: Workspace
) -> Inputs:
    """Pad the pixels to whole panels; a sample weighs 1/n where there is no upstream."""
    draw, real, width = problem.draw, problem.x.dtype, layout.shape.width
    pixels, padding = problem.x.shape[1], -problem.x.shape[1] % width
    weight = problem.weight
    if weight is None:
        weight = np.ones((1 if layout.cell.weighted and padding else 0, pixels), real)
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
    of_latents = (-(-latent // width), capacity, width)
    values = memory.take((layout.values,), real)
    if layout.cell.likelihood == QUADRATIC and len(inputs.layers) == 1:
        values.fill(0)  # nobody writes the columns behind the latents, which a quadratic form multiplies with 0
    return Chunk(
        datum=memory.zeros((capacity,), np.int64),
        g=np.ones(capacity, real),
        weights=memory.take((layout.weights,), real),
        values=values,
        spread=memory.take(of_latents, real),
        dz=memory.take(of_latents if inputs.lowest < 0 or layout.cell.likelihood == QUADRATIC else nothing, real),
        dx=memory.take(of_pixels if need.x and layout.cell.weighted else nothing, real),
        dw=memory.take(of_pixels if need.weight else nothing, real),
        errors=memory.zeros((capacity,)),
    )


def thread_buffers(layout: Layout, inputs: Inputs, threads: int, memory: Workspace) -> Scratch:
    """Allocate the buffers of all threads."""
    shape, real = layout.shape, inputs.x.dtype
    partial = memory.zeros((threads, layout.tiles, shape.rows, shape.lanes), real)
    return Scratch(
        eps=memory.take((threads, layout.tiles * shape.rows, inputs.mu.shape[1]), real),
        sums=memory.take((threads, 1, shape.rows, shape.width), real),
        partial=partial,
    )


def empty_totals(layout: Layout, inputs: Inputs, need: Need, errors: Array, memory: Workspace) -> Totals:
    """Return zeros for what is needed, beside the place for every T; the first chunk starts the layers' sums."""
    batch, latent = inputs.mu.shape
    posterior = (batch, latent) if need.mu or need.logvar else (0, 0)
    return Totals(
        errors=errors.reshape(-1),
        moments=memory.zeros((batch, 3)),
        layers=memory.take((layout.totals,), np.float64),
        mu=memory.zeros(posterior),
        logvar=memory.zeros(posterior),
        x=memory.zeros(inputs.x.shape if need.x else (0, 0)),
        weight=memory.zeros(inputs.weight.shape if need.weight else (0, 0)),
    )
