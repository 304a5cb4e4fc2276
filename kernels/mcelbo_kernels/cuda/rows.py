"""How the rows of each datum are added up: by which kernels of `datum`, and in how many parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from mcelbo_kernels.cuda.datum import AT_ONCE, IN_PARTS, OF_PARTS, WHOLE, latent_gradient, moments, pixel_gradient
from mcelbo_kernels.cuda.layout import ENOUGH_BLOCKS, Kind, cut_datum, up
from mcelbo_kernels.cuda.seam import Kernel
from mcelbo_kernels.cuda.sums import LANES_OF_PIXELS, THREADS, lanes_for

# As long as some rows' noise is drawn, a thread could wait so often for the second-level cache.
WAITS_OF_DRAWS = 4
LANES_OF_A_SECTOR = 8  # numbers that memory gives together at least


class DatumSum(NamedTuple):
    """What adds up the n rows of each datum, in one launch or in two, see `datum`.

    Attributes
    ----------
    kernels : tuple of Kernel
        One, or one for the rows in parts and one for the parts.
    n, columns, lanes, values : int
        `values` are numbers of a column, `lanes` the columns of a block.
    parts, piece : int
        Parts of a datum, and the rows of each.
    """

    kernels: tuple[Kernel, ...]
    n: int
    columns: int
    lanes: int
    values: int
    parts: int
    piece: int

    def blocks(self, data: int) -> list[tuple[int, int]]:
        """Return the blocks of each kernel for so many data."""
        across = up(self.columns, self.lanes) * data
        return [(across, self.parts), (across, 1)][: len(self.kernels)]

    def left(self, rows: int) -> int:
        """Return how many numbers the first of two launches leaves of a chunk of so many rows."""
        most = (rows - 2) // self.n + 2
        return most * self.columns * self.values * self.parts if self.parts > 1 else 0


def datum_sum(
    make: Callable[[str], Kernel], length: int, n: int, columns: int, lanes: int, values: int, waits: int
) -> DatumSum:
    """Return the sum over each datum's rows in chunks of a length, by the kernels that `make` returns for a stage."""
    blocks, turn = up(length, n) * up(columns, lanes), THREADS // lanes * AT_ONCE
    parts, piece = cut_datum(blocks, min(n, length), turn, waits)
    stages = (WHOLE,) if parts == 1 else (IN_PARTS, OF_PARTS)
    return DatumSum(tuple([make(stage) for stage in stages]), n, columns, lanes, values, parts, piece)


def sum_of_moments(kind: Kind, length: int, tiles: int) -> DatumSum:
    """Return the sum over so many tiles' errors."""
    make = partial(moments, kind.real, kind.quadratic)
    return datum_sum(make, length, kind.samples, 1, 1, 2, tiles)


def sum_of_latents(kind: Kind, length: int, parts: int) -> DatumSum:
    """Return the sum over the rows of so many parts of dz."""
    latent = kind.widths[0]
    lanes = lanes_for_latents(latent, up(length, kind.samples), min(kind.samples, length))
    make = partial(latent_gradient, kind.sampler, kind.real, lanes, kind.upstream)
    return datum_sum(make, length, kind.samples, latent, lanes, 2, parts + WAITS_OF_DRAWS)


def lanes_for_latents(latent: int, data: int, rows: int) -> int:
    """Return how many latents a block takes: fewer where there are too few blocks, and one would take several turns."""
    lanes = lanes_for(latent)

    def few(lanes: int) -> bool:
        return 2 * data * up(latent, lanes) <= ENOUGH_BLOCKS and THREADS // lanes * AT_ONCE < rows

    while lanes > LANES_OF_A_SECTOR and few(lanes):
        lanes //= 2
    return lanes


def sum_of_pixels(kind: Kind, length: int, n: int) -> DatumSum:
    """Return the sum over rows of pixels, of which n make a datum's."""
    make = partial(pixel_gradient, kind.real, kind.upstream)
    return datum_sum(make, length, n, kind.widths[-1], LANES_OF_PIXELS, 1, 1)
