"""A block's matrix product: the register tile, and two buffers in shared memory that take turns.

While a slice of the sum is multiplied, the next one is on its way into registers; then it is put down in the other
buffer, and one barrier ends the turn.
"""

from __future__ import annotations

from typing import Any

from mcelbo_kernels.cuda.operands import Operand
from mcelbo_kernels.cuda.seam import cuda, device, int32
from mcelbo_kernels.cuda.tile import GAP, SLICE, Tile, outer_product, places


def shared_sizes(tile: Tile) -> tuple[int, int]:
    """Return how many numbers the left and the right operand's two buffers hold."""
    return 2 * SLICE * (tile.height + GAP), 2 * SLICE * (tile.width + GAP)


def product(tile: Tile, real: Any, left: Operand, right: Operand) -> Any:
    """Return the device function that adds a product to a tile.

    (acc, lefts, rights, left_source, right_source, begin, end): acc[i, j] += sum_k left[k, row i] right[k, column j]
    for begin <= k < end; `lefts` and `rights` are the shared buffers, which nobody uses after it.
    """
    pitch_l, pitch_r = tile.height + GAP, tile.width + GAP
    rows, columns = tile.rows, tile.columns
    (start_l, fetch_l, put_l, share_l), (start_r, fetch_r, put_r, share_r) = left, right
    outer_add, place = outer_product(tile), places(tile)
    top_of, left_of = place.top, place.left

    @device
    def multiply(acc, lefts, rights, left_source, right_source, begin, end):
        staged_l, staged_r = cuda.local.array(share_l, real), cuda.local.array(share_r, real)
        a, b = cuda.local.array(rows, real), cuda.local.array(columns, real)
        top, first = top_of(), left_of()
        left = int32(end - begin)
        at_l = fetch_l(staged_l, left_source, start_l(left_source, begin), left)
        at_r = fetch_r(staged_r, right_source, start_r(right_source, begin), left)
        put_l(staged_l, lefts, 0)
        put_r(staged_r, rights, 0)
        cuda.syncthreads()
        turn = int32(0)
        while left > 0:
            left = int32(left - SLICE)
            if left > 0:
                at_l = fetch_l(staged_l, left_source, at_l, left)
                at_r = fetch_r(staged_r, right_source, at_r, left)
            # the mask tells the compiler that no index is negative
            base = (turn & 1) * SLICE
            row, column = base * pitch_l + top, base * pitch_r + first
            # written out, because a loop would not be unrolled
            outer_add(acc, a, b, lefts, rights, row, column)
            outer_add(acc, a, b, lefts, rights, row + pitch_l, column + pitch_r)
            outer_add(acc, a, b, lefts, rights, row + 2 * pitch_l, column + 2 * pitch_r)
            outer_add(acc, a, b, lefts, rights, row + 3 * pitch_l, column + 3 * pitch_r)
            outer_add(acc, a, b, lefts, rights, row + 4 * pitch_l, column + 4 * pitch_r)
            outer_add(acc, a, b, lefts, rights, row + 5 * pitch_l, column + 5 * pitch_r)
            outer_add(acc, a, b, lefts, rights, row + 6 * pitch_l, column + 6 * pitch_r)
            outer_add(acc, a, b, lefts, rights, row + 7 * pitch_l, column + 7 * pitch_r)
            turn = int32(turn + 1)
            if left > 0:
                put_l(staged_l, lefts, (turn & 1) * SLICE)
                put_r(staged_r, rights, (turn & 1) * SLICE)
            cuda.syncthreads()

    return multiply
