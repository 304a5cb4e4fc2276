"""How the products of a call are shared out: how long its chunks are, which tiles they take, how sums are cut.

All of it follows from the problem alone, never from the device, so that the same call gives the same bits everywhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mcelbo_kernels.cuda.noise import INJECTED
from mcelbo_kernels.cuda.seam import float32, float64
from mcelbo_kernels.cuda.thin import MOST_LATENTS, MOST_PIXELS, ROWS_OF_A_BLOCK
from mcelbo_kernels.cuda.tile import LARGE, NARROW, NARROW_DOUBLE, SLICE, SMALL, SMALL_DOUBLE, Tile
from mcelbo_kernels.problem import Activation, Need, Problem

# In place of a cell: the last layer is a quadratic form G of the one before it, see `quadratic`.
QUADRATIC = "quadratic"
# What a chunk leaves for its gradients stays in the second-level cache of an A100 or H100 (40 and 50 MB).
BYTES_OF_A_CHUNK = 32 << 20
# Fewer rows than these would leave multiprocessors idle; where a row is so wide that they outgrow this, they may.
FEWEST_ROWS, MOST_BYTES = 1024, 256 << 20
MOST_ROWS = 1 << 20
# Of an H100; and two blocks for each, and four warps for each of its schedulers, as a lone warp waits in every second
# cycle for what it began before. Groups gain nothing where there are so many warps without
# them: measured on an H200.
MULTIPROCESSORS, WARP = 132, 32
ENOUGH_BLOCKS, ENOUGH_WARPS, WARPS_WITHOUT_GROUPS = 2 * MULTIPROCESSORS, 16 * MULTIPROCESSORS, 6 * MULTIPROCESSORS
# How long a multiprocessor takes over a large tile, and over a small one, a quarter of it, 1: measured on an H100.
TIME_OF_A_LARGE_TILE = 3.2
MOST_PARTS = 65535  # that a grid can have along y
# A thread's sum in single precision ends after so many terms, and one is not cut into parts shorter than this.
LONGEST_SUM, SHORTEST_SUM = 1024, 128
# How many groups of threads may share out the sum of a tile, and the slices that are to be left for each.
GROUPS = {LARGE: (1,), SMALL: (1, 2, 4), NARROW: (1, 2, 4), SMALL_DOUBLE: (1, 2), NARROW_DOUBLE: (1, 2)}
FEWEST_SLICES = 4
# At most so many times as many parts are made for the sake of even shares, and none for less than a tenth.
MOST_TIMES_AS_MANY, WORTH_A_PART = 3, 1.1
# So many times can a thread wait for the second-level cache while a further launch begins.
WAITS_OF_A_LAUNCH = 12


class Kind(NamedTuple):
    """All that a call's kernels and memory depend on: a problem without its numbers, and what is asked about it."""

    dtype: np.dtype[Any]
    batch: int
    samples: int
    widths: tuple[int, ...]  # d, the hidden layers' and m, or that of a quadratic form
    activations: tuple[Activation, ...]
    cell: str  # or QUADRATIC
    sampler: str  # or "injected"
    weights: int  # how many data have pixel weights: 0 without any, 1 where they are shared
    need: Need
    upstream: bool  # whether samples have factors
    keep: bool  # whether all errors are kept

    @property
    def real(self) -> Any:
        """Precision of the problem, as a type of numba."""
        return float32 if self.dtype == np.float32 else float64

    @property
    def rows(self) -> int:
        """Samples of all data."""
        return self.batch * self.samples

    @property
    def thin(self) -> bool:
        """Whether one pass over a few latents' pixels keeps nothing of them."""
        few = len(self.widths) == 2 and 1 <= self.widths[0] <= MOST_LATENTS and self.widths[1] <= MOST_PIXELS
        return few and not (self.quadratic or self.need.x or self.need.weight)

    @property
    def summed(self) -> bool:
        """Whether the errors are summed up for each datum."""
        return not (self.keep or self.upstream)

    @property
    def lowest(self) -> int:
        """The first layer whose da is needed: -1 where dz is."""
        if self.need.mu or self.need.logvar:
            return -1
        return next((index for index, needed in enumerate(self.need.layers) if any(needed)), len(self.widths) - 2)

    @property
    def quadratic(self) -> bool:
        """Whether the last layer is a quadratic form, whose input is a difference from the datum's centre."""
        return self.cell == QUADRATIC

    def symmetric(self, index: int) -> bool:
        """Tell whether a layer's gradient is symmetric: that of a quadratic form, whose kernel goes back through it."""
        return self.quadratic and index == len(self.widths) - 2

    def leaves_slope(self, index: int) -> bool:
        """Tell whether a layer before the last leaves its activation's slope, which becomes its da."""
        return self.need.gradient and index >= self.lowest


def kind_of(problem: Problem, need: Need, upstream: bool, keep: bool, quadratic: bool = False) -> Kind:
    """Describe a call; as a quadratic form the last layer is square, and has no pixels that could weigh anything."""
    widths = (problem.mu.shape[1], *[layer.weight.shape[0] for layer in problem.layers])
    return Kind(
        problem.x.dtype,
        len(problem.x),
        problem.draw.num_samples,
        (*widths[:-1], widths[-2]) if quadratic else widths,
        tuple([layer.activation for layer in problem.layers]),
        QUADRATIC if quadratic else problem.cell,
        problem.draw.sampler if problem.draw.eps is None else INJECTED,
        0 if problem.weight is None or quadratic else len(problem.weight),
        need,
        upstream,
        keep,
    )


def up(size: int, step: int) -> int:
    """Return how many steps reach a size."""
    return -(-size // step)


def tiles(tile: Tile, rows: int, columns: int) -> int:
    """Return how many tiles cover a matrix; one without columns has rows to be passed over nevertheless."""
    return up(rows, tile.height) * max(1, up(columns, tile.width))


def shape_for(rows: int, columns: int, real: Any, parts: int = 1) -> Tile:
    """Return the tile that keeps the busiest multiprocessor for the least time, or a narrow one for few columns."""
    if real != float32:
        return NARROW_DOUBLE if columns <= NARROW_DOUBLE.width else SMALL_DOUBLE
    if columns <= NARROW.width:
        return NARROW
    large, small = (up(tiles(tile, rows, columns) * parts, MULTIPROCESSORS) for tile in (LARGE, SMALL))
    return LARGE if TIME_OF_A_LARGE_TILE * large <= small else SMALL


def enough(blocks: int, threads: int) -> int:
    """Return how many times as many blocks still have no more warps than are enough, at least 1."""
    return max(1, ENOUGH_WARPS * WARP // (max(1, blocks) * threads))


def in_groups(tile: Tile, blocks: int, terms: int) -> Tile:
    """Return the tile with as many groups of threads as there are to be warps, and as the sum has slices for."""
    if blocks * tile.members >= WARPS_WITHOUT_GROUPS * WARP:
        return tile
    most = min(enough(blocks, tile.members), terms // (SLICE * FEWEST_SLICES))
    return tile._replace(groups=max(groups for groups in GROUPS.get(tile, (1,)) if groups <= max(1, most)))


def tile_for(rows: int, columns: int, terms: int, real: Any) -> Tile:
    """Return the tile of a product whose sums have so many terms, none of them cut."""
    tile = shape_for(rows, columns, real)
    return in_groups(tile, tiles(tile, rows, columns), terms)


def rows_of_a_chunk(kind: Kind) -> int:
    """Return the rows of a chunk: all there are, or chunks of nearly one length in whole tiles."""
    latent, *hidden, pixels = kind.widths
    numbers = latent + sum(hidden) + up(pixels, SMALL.width)
    if kind.thin:
        numbers = (1 + latent) * (1 + pixels // ROWS_OF_A_BLOCK)
    elif kind.need.gradient:
        numbers += latent + sum(hidden)
        numbers += 0 if kind.quadratic else pixels * (1 + kind.need.x + kind.need.weight)
    of_a_row = max(1, numbers * kind.dtype.itemsize)
    fewest = max(LARGE.height, min(FEWEST_ROWS, MOST_BYTES // of_a_row))
    chunks = max(1, up(kind.rows, min(MOST_ROWS, max(fewest, BYTES_OF_A_CHUNK // of_a_row))))
    return max(1, up(kind.rows, chunks * LARGE.height)) * LARGE.height


def rows_of_a_thin_block(kind: Kind, rows: int, tiles: int) -> int:
    """Return how many rows a block of a thin pass takes, beside which `tiles` take the other pixels."""
    return max(1, min(ROWS_OF_A_BLOCK, up(rows, up(ENOUGH_BLOCKS, tiles))))


def evenly(blocks: int, fewest: int, most: int) -> int:
    """Return into how many parts to cut so many blocks' sums, so that the busiest multiprocessor has little to do."""

    def busiest(parts: int) -> float:
        return up(blocks * parts, MULTIPROCESSORS) / parts

    least = min(busiest(parts) for parts in range(fewest, max(fewest, most) + 1))
    return next(parts for parts in range(fewest, max(fewest, most) + 1) if busiest(parts) <= WORTH_A_PART * least)


class Cut(NamedTuple):
    """How a sum is cut: into `parts` of `piece` terms, which blocks of `tile` add up."""

    tile: Tile
    parts: int
    piece: int


def cut(tile: Tile, blocks: int, terms: int) -> Cut:
    """Cut a sum where groups of threads alone make too few warps, and so that no thread's sum is too long.

    Parts are written and read again, groups are not, so that there are groups first. More parts than it takes for that
    are made where multiprocessors would otherwise get uneven numbers of blocks.
    """
    tile = in_groups(tile, blocks, terms)
    most = up(terms, SHORTEST_SUM)
    fewest = max(up(terms, LONGEST_SUM * tile.groups), min(enough(blocks, tile.threads), most))
    parts = evenly(blocks, fewest, min(MOST_TIMES_AS_MANY * fewest, most)) if fewest > 1 else fewest
    piece = max(1, up(up(terms, max(1, min(parts, MOST_PARTS))), SLICE)) * SLICE
    return Cut(tile, max(1, up(terms, piece)), piece)


def cut_datum(blocks: int, rows: int, turn: int, waits: int) -> tuple[int, int]:
    """Cut the sum over a datum's rows, of which a block takes `turn` at a time and waits so often; see `datum`.

    Returns
    -------
    parts, rows of a part
        One part where more of them, which take a further launch, save no more waits than that is worth.
    """
    turns = up(rows, turn)
    longest = up(turns, min(turns, up(ENOUGH_BLOCKS, max(1, blocks))))
    return (up(turns, longest), longest * turn) if (turns - longest) * waits > WAITS_OF_A_LAUNCH else (1, rows)


def cut_product(rows: int, columns: int, terms: int, real: Any) -> Cut:
    """Cut a product of few columns, as dz = da W is, whose sum goes over the first layer's outputs."""
    tile = shape_for(rows, columns, real)
    return cut(tile, tiles(tile, rows, columns), terms)


def worth_a_launch(rows: int, columns: int, terms: int, real: Any) -> bool:
    """Tell whether so few tiles have so long a sum that it pays to cut it, and to add its parts up in a launch."""
    return 4 * tiles(shape_for(rows, columns, real), rows, columns) <= MULTIPROCESSORS and terms >= 3 * SHORTEST_SUM


def cut_weight_gradient(rows: int, inputs: int, outputs: int, real: Any, symmetric: bool = False) -> Cut:
    """Cut dW = da^T h, whose sum goes over the rows; of a symmetric one the tiles up to the diagonal are computed."""
    tile = shape_for(outputs, inputs, real, up(rows, LONGEST_SUM))
    blocks = tiles(tile, outputs, inputs)
    return cut(tile, (blocks + up(outputs, tile.height)) // 2 if symmetric else blocks, rows)
