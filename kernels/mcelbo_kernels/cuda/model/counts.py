"""How many instructions the CUDA kernels take beside their multiply-adds: the numbers of the model.

They were counted in the machine code that ptxas makes for compute capability 9.0 from float32 kernels: those of a loop
on the way that blocks within the matrix take, and for a cell what the kernel with it has more than without. A branch
that few threads take does not count. The tests compare with what an interpreter of PTX executes.
"""

from __future__ import annotations

from typing import NamedTuple

from mcelbo_kernels.cuda.tile import LARGE, NARROW, NARROW_DOUBLE, SMALL, SMALL_DOUBLE, Tile

# Registers that ptxas takes where the launch bounds leave more: the most of a name's kernels.
REGISTERS_TAKEN = {
    "draw": 36,
    "thin": 64,
    "moments": 80,
    "moments_in_parts": 80,
    "moments_of_parts": 44,
    "finish_errors": 28,
    "activation_gradient": 28,
    "latent_gradient": 78,
    "latent_gradient_in_parts": 78,
    "latent_gradient_of_parts": 44,
    "centre_errors": 46,
    "residuals": 27,
    "layer_gradient": 39,
    "pixel_weight_gradient": 56,
    "pixel_gradient": 56,
    "pixel_gradient_in_parts": 56,
    "pixel_gradient_of_parts": 38,
    "parameter_gradient": 26,
}


class Count(NamedTuple):
    """Instructions, as in `Launch`."""

    floats: float = 0
    others: float = 0
    special: float = 0
    wide: float = 0

    def times(self, number: float) -> Count:
        """Return so many times as many."""
        return Count(*(number * each for each in self))

    def plus(self, *more: Count) -> Count:
        """Return the sum."""
        return Count(*map(sum, zip(self, *more, strict=True)))


# For a thread and slice, fetched, put down and loaded again; for a thread before and after, and more in the last layer.
OF_A_SLICE = {
    LARGE: Count(0, 95),
    SMALL: Count(0, 114),
    NARROW: Count(0, 128),
    SMALL_DOUBLE: Count(0, 107),
    NARROW_DOUBLE: Count(0, 116),
}
# More where there are groups, whose registers do not keep all addresses; and for a run of numbers of their sum.
OF_A_SLICE_OF_GROUPS, OF_A_RUN = Count(0, 35), Count(0, 2)
OF_A_TILE, OF_A_LAST_TILE = Count(0, 300), Count(16, 200, 2)
# For a number of a product that is only stored, or multiplied by a slope first; for a number of da in a bias's sum.
OF_A_NUMBER, OF_A_SLOPE, OF_A_BIAS = Count(1, 2), Count(1, 4), Count(1)
# The squared error of a cell and what is kept of it, without and with its derivative, with pixels loaded at once; a
# pixel's weight more.
OF_A_CELL = {False: Count(2, 3), True: Count(3, 5)}
OF_A_WEIGHT = Count(2, 9)
# In a layer before the last.
OF_A_HIDDEN_CELL = {False: Count(0, 2), True: Count(0, 4)}
# More than for "identity", without and with the derivative.
IDENTITY, RELU, SIGMOID = (Count(), Count()), (Count(0, 1), Count(0, 2)), (Count(10, 6, 1), Count(13, 5, 1))
# The thin pass: a cell, a thread's sample with its share of the sums over threads, a latent of a sample, a thread.
OF_A_THIN_CELL = {False: Count(3, 1), True: Count(6, 3)}
OF_A_THIN_SAMPLE, OF_A_THIN_LATENT, OF_A_THIN_THREAD = Count(0, 50), Count(54, 220, 6), Count(0, 240)
# Four rows of a latent by "iid" that share a Philox block, or of the caller's noise; drawn again; half a deviation.
OF_FOUR_DRAWS = {False: Count(152, 400, 16), True: Count(8, 200, 4)}
OF_A_REDRAW, OF_A_DEVIATION = {False: Count(136, 280, 24, 4), True: Count(0, 80, 4, 4)}, Count(13, 40, 4, 4)
# Sums in float64: a part of a row, a row, a thread with its share of its block's sum; of a datum a thread, and its rows
# at once.
OF_A_PART, OF_A_ROW = Count(0, 19, 1, 1), Count(0, 70, 1, 3)
OF_A_SUM, OF_A_DATUM, OF_A_TURN = Count(0, 80, 0, 8), Count(0, 180, 4, 12), Count(0, 60, 0, 8)


def of_turn(tile: Tile) -> Count:
    """Return the instructions of a slice, for a thread of a tile."""
    count = OF_A_SLICE[tile._replace(groups=1)]
    return count.plus(OF_A_SLICE_OF_GROUPS) if tile.groups > 1 else count


def of_groups(tile: Tile) -> Count:
    """Return the instructions that add up a tile's groups, for a thread: it stores what it holds, and loads as much."""
    numbers = tile.rows * tile.columns
    if tile.groups == 1:
        return Count()
    added = numbers - tile.finished * tile.columns
    return Count(numbers + added).plus(OF_A_RUN.times(2 * numbers / min(4, tile.columns // 2)))


def of_activation(name: str, gradient: bool) -> Count:
    """Return the instructions of an activation; those that were not counted are taken for a sigmoid."""
    return {"identity": IDENTITY, "relu": RELU, "leaky_relu": RELU}.get(name, SIGMOID)[gradient]


def of_cell(cell: str, activation: str, gradient: bool, weighted: bool) -> Count:
    """Return the instructions of a pixel's cell behind the last activation.

    The Bernoulli cell, which was not counted, is taken for two sigmoids.
    """
    likelihood = SIGMOID[gradient].times(2 * (cell != "squared_error"))
    return of_activation(activation, gradient).plus(likelihood, OF_A_WEIGHT.times(weighted))
