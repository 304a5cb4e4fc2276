"""How a call is laid out: how long its chunks are, which tiles its products take, and how their sums are cut.

All of it follows from the problem alone, never from the device, so that the same call gives the same bits everywhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mcelbo_kernels.cuda.seam import float32
from mcelbo_kernels.cuda.tile import LARGE, NARROW, SLICE, SMALL, Tile
from mcelbo_kernels.problem import Need, Problem

# What a chunk leaves for its gradients stays in the second-level cache of an A100 or H100 (40 and 50 MB).
BYTES_OF_A_CHUNK = 32 << 20
FEWEST_ROWS, MOST_ROWS = 1024, 1 << 20
# Two blocks for each multiprocessor of an H100.
ENOUGH_BLOCKS = 264
# A sum in single precision ends after so many terms.
LONGEST_SUM = 1024


class Part(NamedTuple):
    """How a product whose sum may be cut is shared out: into `parts` of `piece` terms, by blocks of `tile`."""

    tile: Tile
    parts: int
    piece: int


def up(size: int, step: int) -> int:
    """Return the size in whole steps."""
    return -(-size // step)


def tiles(tile: Tile, rows: int, columns: int) -> int:
    """Return how many tiles cover a matrix."""
    return up(rows, tile.height) * up(columns, tile.width)


def tile_for(rows: int, columns: int, real: Any, parts: int = 1) -> Tile:
    """Return the largest tile of which there are enough for all multiprocessors, or a narrow one for few columns."""
    if columns <= NARROW.width:
        return NARROW
    large = real == float32 and tiles(LARGE, rows, columns) * parts >= ENOUGH_BLOCKS
    return LARGE if large else SMALL


def capacity(problem: Problem, need: Need) -> int:
    """Return the rows of a chunk: all of them, or chunks of nearly one length in whole tiles."""
    latent, pixels = problem.mu.shape[1], problem.x.shape[1]
    hidden = sum(layer.weight.shape[0] for layer in problem.layers[:-1])
    numbers = latent + hidden
    if need.gradient:
        numbers += latent + hidden + pixels * (1 + need.x + need.weight)
    rows = len(problem.x) * problem.draw.num_samples
    affordable = BYTES_OF_A_CHUNK // (numbers * problem.x.dtype.itemsize)
    longest = min(MOST_ROWS, max(FEWEST_ROWS, affordable))
    chunks = max(1, up(rows, longest))
    return max(1, up(rows, chunks * LARGE.height)) * LARGE.height


def cut_outputs(rows: int, inputs: int, outputs: int, real: Any) -> Part:
    """Share out dz = da W, whose sum goes over the outputs."""
    tile = tile_for(rows, inputs, real)
    return cut(tile, tiles(tile, rows, inputs), outputs, 8 * SLICE)


def cut_rows(rows: int, inputs: int, outputs: int, real: Any) -> Part:
    """Share out dW = da^T h, whose sum goes over the rows."""
    few = up(rows, LONGEST_SUM)
    tile = tile_for(outputs, inputs, real, max(few, up(rows, 256)))
    return cut(tile, tiles(tile, outputs, inputs), rows, 32 * SLICE)


def cut(tile: Tile, blocks: int, terms: int, shortest: int) -> Part:
    """Cut a sum so that there are enough blocks and no part is longer than a sum in single precision may be."""
    parts = max(up(terms, LONGEST_SUM), min(up(ENOUGH_BLOCKS, blocks), up(terms, shortest)))
    piece = up(up(terms, parts), SLICE) * SLICE
    return Part(tile, max(1, up(terms, piece)), piece)
