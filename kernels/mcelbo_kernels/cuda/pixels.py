"""The errors of decoded samples that already lie in a device's memory: the reduction of the chunked path.

T[b,i] = sum_j w t(y, x):    dT/dy = w dt/dy,    dT/dx = w dt/dx,    dT/dw = t,    t the cell

Numbers that pass through memory, for c samples of each of B data with m pixels:

    errors             y B c m read once, dy as many written once in the same pass; x and w from the caches, since
                       all samples of a datum read the same
    gradients          y B c m read once more where dx or dw is needed, both in one pass
    add_parts          parts of sums, where there are any: a few percent of y

which are one to five launches. How sums are cut follows from the sizes alone, and so do the bits of the results.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mcelbo_kernels.cuda.decoded import AT_ONCE, Errors, Gradients, add_parts, errors, gradients
from mcelbo_kernels.cuda.layout import ENOUGH_BLOCKS, up
from mcelbo_kernels.cuda.seam import float32, float64
from mcelbo_kernels.cuda.sums import THREADS, lanes_for, power_of_two
from mcelbo_kernels.cuda.target import Target
from mcelbo_kernels.decoded import DecodedErrors, check_decoded

SHORTEST_SUM = 4 * AT_ONCE  # over samples, of a thread whose datum is cut into parts
FULL = 2 * ENOUGH_BLOCKS  # so many blocks does an H100 hold at once


def decoded_errors(
    cell: str,
    y: Any,
    x: Any,
    weight: Any,
    upstream: Any,
    need_y: bool,
    need_x: bool,
    need_weight: bool,
    target: Target,
) -> DecodedErrors:
    """Return T[b,i] = sum_j w[b,j] t(y[b,i,j], x[b,j]) and its vector-Jacobian product, flat arrays.

    A pixel of weight 0 is excluded by selection: it counts nothing, and has zero gradients in y and x, whatever x and y
    hold there. The gradient of the weight itself is t everywhere.

    Parameters
    ----------
    cell : str
        What t is: a name of `mcelbo_kernels.problem.CELLS`.
    y : array, shape (B, c, m), float32 or float64
        Decoded samples, c for each datum, in the device's memory, row after row, as all arrays.
    x : array, shape (B, m)
    weight : array, shape (B, m) or (1, m), or None
        None is 1.
    upstream : array, shape (B, c), or None
        The factors of the vector-Jacobian product, in the dtype of y; None is 1.
    need_y, need_x, need_weight : bool
        Which gradients to return.
    target : Target

    Returns
    -------
    DecodedErrors

    Raises
    ------
    TypeError
        If the dtypes differ.
    ValueError
        If the shapes do not agree, or the cell is unknown.
    """
    check_decoded(cell, y, x, weight, upstream)
    call = Call(cell, y, x, weight, upstream, target)
    errors, dy = call.errors(need_y)
    dx, dw = call.gradients(need_x, need_weight)
    return DecodedErrors(errors, dy, dx, dw)


class Cut(NamedTuple):
    """How a sum is shared out: `lanes` neighbouring threads, a power of two, and `parts` of `piece` terms."""

    lanes: int
    parts: int
    piece: int


def cut_pixels(rows: int, pixels: int) -> Cut:
    """Cut the sum over each row's pixels: the fewer pixels in all, the fewer a thread takes."""
    terms = max(AT_ONCE, rows * pixels // (FULL * THREADS))
    lanes = max(lanes_for(pixels), min(THREADS, power_of_two(up(pixels, terms))))
    parts = max(1, up(pixels, lanes * terms))
    return Cut(lanes, parts, up(pixels, parts))


def cut_samples(batch: int, count: int, pixels: int) -> Cut:
    """Cut the sum over each datum's samples: few samples leave most of a block to neighbouring pixels."""
    groups = min(THREADS // 32, power_of_two(up(count, SHORTEST_SUM)))
    lanes = min(THREADS // groups, power_of_two(pixels))
    blocks, longest = max(1, batch * up(pixels, lanes)), up(count, THREADS // lanes * SHORTEST_SUM)
    parts = max(1, min(up(FULL, blocks), longest))
    return Cut(lanes, parts, up(count, parts))


class Call:
    """A call: its arrays, sizes and launches."""

    def __init__(self, cell: str, y: Any, x: Any, weight: Any, upstream: Any, target: Target) -> None:
        self.cell, self.target, self.dtype, (self.batch, self.count, self.pixels) = cell, target, x.dtype, y.shape
        self.real = float32 if x.dtype == np.float32 else float64
        self.weights = 0 if weight is None else len(weight)
        apart = self.pixels if self.weights > 1 else 0
        self.arrays = y, x, weight, apart, upstream, int(upstream is not None)

    def errors(self, need_y: bool) -> tuple[Any, Any]:
        """Return the errors and dy."""
        rows = self.batch * self.count
        lanes, parts, piece = cut_pixels(rows, self.pixels)
        sums = self.target.empty(parts * rows, np.float64)
        dy = self.target.empty(rows * self.pixels, self.dtype) if need_y else None
        if rows:
            kernel = errors(Errors(self.real, self.cell, self.weights > 0, need_y))
            blocks = up(rows, THREADS // lanes) * parts
            sizes = rows, self.count, self.pixels, parts, piece, lanes.bit_length() - 1
            self.target.launch(kernel, (blocks, 1), *self.arrays, *sizes, sums, dy)
        return self.added(sums, parts, rows), dy

    def gradients(self, need_x: bool, need_weight: bool) -> tuple[Any, Any]:
        """Return dx and dw."""
        if not (need_x or need_weight):
            return None, None
        lanes, parts, piece = cut_samples(self.batch, self.count, self.pixels)
        numbers = self.batch * self.pixels
        dx, dw = (self.target.empty(parts * numbers, np.float64) if need else None for need in (need_x, need_weight))
        blocks = self.batch * up(self.pixels, lanes) * parts
        if blocks:
            kernel = gradients(Gradients(self.real, self.cell, need_x and self.weights > 0, need_x, need_weight))
            sizes = self.batch, self.count, self.pixels, parts, piece, lanes.bit_length() - 1
            self.target.launch(kernel, (blocks, 1), *self.arrays, *sizes, dx, dw)
        if need_x:
            dx = self.added(dx, parts, numbers)
        if need_weight:
            # of a shared weight the data are parts too
            of_weight = (parts * self.batch, self.pixels) if self.weights == 1 else (parts, numbers)
            dw = self.added(dw, *of_weight)
        return dx, dw

    def added(self, sums: Any, parts: int, count: int) -> Any:
        """Return the sum of parts (parts, count)."""
        if parts == 1 or not count:
            return sums
        result, lanes = self.target.empty(count, np.float64), lanes_for(count)
        self.target.launch(add_parts(), (up(count, lanes), 1), sums, parts, count, lanes.bit_length() - 1, result)
        return result
