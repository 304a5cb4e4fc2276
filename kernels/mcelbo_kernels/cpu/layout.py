"""How a kind of call is laid out: what is compiled, how long chunks and tasks are, where each layer's numbers lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mcelbo_kernels.cpu import buffers
from mcelbo_kernels.cpu.cell import QUADRATIC, Cell
from mcelbo_kernels.cpu.shape import Shape
from mcelbo_kernels.problem import Activation, Array, Need, Problem

# A chunk is long enough that the weight gradients' sums, kept in registers, are moved seldom, and short enough for the
# cache. Both depend on the problem alone, so that results do not change with the machine's load or threads.
ROWS_OF_A_CHUNK = 4128
FEWEST_ROWS_OF_A_CHUNK = 96
BYTES_OF_A_CHUNK = 4 << 20
# A task is long enough that taking it costs little and a panel of weights serves several tiles, and short enough that a
# chunk has some for every thread.
TILES_OF_A_TASK = 8
MULTIPLICATIONS_OF_A_TASK = 1 << 20
TASKS_OF_A_CHUNK = 24
# A layer is thin if its weights and their gradients leave room in the registers, which are as many as the lanes of one
# or more. A thin task's sums stay in the nearest cache.
LANES_OF_A_THIN_LATENT = 4
BYTES_OF_A_THIN_TASK = 24 << 10
TASKS_OF_A_THIN_CHUNK = 32


class Kind(NamedTuple):
    """All that buffers depend on: a problem without its numbers, and what is asked about it."""

    tile: Shape
    likelihood: str
    batch: int
    latent: int
    pixels: int
    samples: int
    layers: tuple[tuple[tuple[int, ...], Activation], ...]  # the shapes (outputs, inputs) and what follows them
    weights: int  # how many data have pixel weights: 0 without any, 1 where they are shared
    need: Need
    upstream: bool
    centre: bool
    threads: int

    @property
    def real(self) -> np.dtype[Any]:
        """The precision of the problem."""
        return np.dtype(self.tile.real)

    @property
    def rows(self) -> int:
        """Samples of all data."""
        return self.batch * self.samples


def kind_of(
    problem: Problem,
    need: Need,
    tile: Shape,
    likelihood: str | None = None,
    upstream: Array | None = None,
    centre: Array | None = None,
    threads: int = 1,
) -> Kind:
    """Describe a call."""
    return Kind(
        tile,
        likelihood or problem.cell,
        len(problem.x),
        problem.mu.shape[1],
        problem.x.shape[1],
        problem.draw.num_samples,
        tuple([(layer.weight.shape, layer.activation) for layer in problem.layers]),
        0 if problem.weight is None else len(problem.weight),
        need,
        upstream is not None,
        centre is not None,
        threads,
    )


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


def lay_out(kind: Kind) -> Layout:
    """Choose what is compiled, how long a chunk is, and where each layer's numbers lie."""
    shape, need, gradient = kind.tile, kind.need, kind.need.gradient
    *hidden, output = (activation.name for _, activation in kind.layers)
    weighted = (kind.weights > 0 or need.x) and kind.likelihood != QUADRATIC
    thin = is_thin(kind)
    cell = Cell(output, tuple(dict.fromkeys(hidden)), kind.likelihood, gradient, weighted, thin)
    if thin:
        shape = Shape(shape.real, kind.latent + 1, shape.columns, shape.lanes)

    def round_up(size: int) -> int:
        return -(-size // shape.width) * shape.width

    sizes = [size for size, _ in kind.layers]
    columns = [(round_up(outputs), round_up(inputs + 1)) for outputs, inputs in sizes]
    capacity, tiles = thin_chunk(kind, shape) if thin else chunk(kind, columns)
    table = np.zeros((len(sizes), buffers.FIELDS), np.int64)
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
        table[0, buffers.SCALED] = values if kind.upstream else table[0, buffers.LEFT]
        values += columns[0][1] * capacity if kind.upstream else 0
    if kind.likelihood == QUADRATIC:
        table[-1, buffers.OUTPUT] = table[-1, buffers.LEFT]
    for row, name in zip(table, hidden, strict=False):
        row[buffers.ACTIVATION] = cell.hidden.index(name)
    tasks = -(-capacity // (tiles * shape.rows))
    return Layout(shape, cell, table, capacity, tiles, tasks, weights, values, totals)


def is_thin(kind: Kind) -> bool:
    """Tell whether `thin` passes over the decoder: its tasks' sums must not outgrow a chunk."""
    sums = (kind.latent + 1) * kind.pixels * TASKS_OF_A_THIN_CHUNK * kind.real.itemsize
    few = 1 <= kind.latent <= kind.tile.lanes // LANES_OF_A_THIN_LATENT and sums <= BYTES_OF_A_CHUNK
    simple = len(kind.layers) == 1 and kind.likelihood != QUADRATIC
    return few and simple and not (kind.need.x or kind.need.weight)


def thin_chunk(kind: Kind, shape: Shape) -> tuple[int, int]:
    """Return the rows of a thin chunk, and the tiles of its tasks."""
    tiles = max(1, BYTES_OF_A_THIN_TASK // (shape.rows * shape.rows * shape.lanes * kind.real.itemsize))
    capacity = equal_chunks(kind, TASKS_OF_A_THIN_CHUNK * tiles * shape.rows, shape)
    tasks = -(-capacity // (2 * tiles * shape.rows)) * 2
    return capacity, -(-capacity // (tasks * shape.rows))


def chunk(kind: Kind, columns: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the rows of a chunk, and the tiles of its tasks; `columns` are the padded (outputs, inputs) of layers."""
    shape, need = kind.tile, kind.need
    of_a_row = sum(inputs + need.gradient * outputs for outputs, inputs in columns)
    beside = 2 * columns[0][1] + (need.x + need.weight) * columns[-1][0]
    affordable = BYTES_OF_A_CHUNK // max(1, (of_a_row + beside) * kind.real.itemsize)
    longest = min(ROWS_OF_A_CHUNK, max(FEWEST_ROWS_OF_A_CHUNK, affordable))
    capacity = equal_chunks(kind, longest, shape)
    of_a_tile = shape.rows * sum(outputs * inputs for outputs, inputs in columns)
    longest = max(TILES_OF_A_TASK, MULTIPLICATIONS_OF_A_TASK // of_a_tile)
    return capacity, max(1, min(longest, capacity // (shape.rows * TASKS_OF_A_CHUNK)))


def equal_chunks(kind: Kind, longest: int, shape: Shape) -> int:
    """Return the rows of chunks of one length, in whole tiles."""
    chunks = max(1, -(-kind.rows // longest))
    return max(1, -(-kind.rows // (chunks * shape.rows))) * shape.rows
