"""A block's matrix product: the register tile, and two buffers in shared memory that take turns.

While a slice of the sum is multiplied, the next one is on its way into registers; then it is put down in the other
buffer, and one barrier ends the turn.
"""

from __future__ import annotations

from typing import Any

from mcelbo_kernels.cuda.operands import Operand
from mcelbo_kernels.cuda.seam import cuda, device, int32
from mcelbo_kernels.cuda.tile import GAP, SLICE, Tile, group_of, moved, outer_product, places


def shared_size(tile: Tile) -> int:
    """Return how many numbers the two buffers of both operands hold, those of all groups."""
    return tile.groups * 2 * SLICE * (tile.height + tile.width + 2 * GAP)


def product(tile: Tile, real: Any, left: Operand, right: Operand) -> Any:
    """Return the device function that adds a product to a tile.

    (acc, shared, left_source, right_source, begin, end): acc[i, j] += sum_k left[k, row i] right[k, column j] for
    begin <= k < end; `shared` are the buffers, which nobody uses after it. With groups of threads each takes its turn
    at the slices, and in the end acc[i, j] is the sum for the i-th row that the thread finishes.
    """
    pitch_l, pitch_r = tile.height + GAP, tile.width + GAP
    rows, columns, groups, step = tile.rows, tile.columns, tile.groups, SLICE * tile.groups
    # of a slice the left operand lies first
    of_left, of_slice = SLICE * pitch_l, SLICE * (pitch_l + pitch_r)
    (start_l, fetch_l, put_l, share_l), (start_r, fetch_r, put_r, share_r) = left, right
    outer_add, place, group, add_groups = outer_product(tile), places(tile), group_of(tile), sum_of_groups(tile, real)
    top_of, left_of = place.top, place.left
    # threads of four groups have fewer registers, of which one operand at a time takes half as many as both; that there
    # are other groups leaves it the time to come
    halves, zero, shift = groups > 1, real(0), step.bit_length() - 1

    @device
    def forget(staged):
        for e in range(len(staged)):
            staged[e] = zero

    @device
    def multiply(acc, shared, left_source, right_source, begin, end):
        staged_l, staged_r = cuda.local.array(share_l, real), cuda.local.array(share_r, real)
        a, b = cuda.local.array(rows, real), cuda.local.array(columns, real)
        own = group()
        before, base = int32(own * SLICE), own * (2 * of_slice)
        top, first = base + top_of(), base + of_left + left_of()
        # alike for all groups, because all wait at the same barriers
        left = int32(end - begin)
        at_l = fetch_l(staged_l, left_source, start_l(left_source, begin + before), left, before)
        at_r = fetch_r(staged_r, right_source, start_r(right_source, begin + before), left, before)
        # Of the two buffers it is one's turn, as `left` tells; the mask tells the compiler that no index is negative.
        following = base + ((left >> shift) & 1) * of_slice
        put_l(staged_l, shared, following)
        put_r(staged_r, shared, following + of_left)
        cuda.syncthreads()
        while left > 0:
            turn = (left >> shift) & 1
            left = int32(left - step)
            if left > 0:
                at_l = fetch_l(staged_l, left_source, at_l, left, before)
                if not halves:
                    at_r = fetch_r(staged_r, right_source, at_r, left, before)
            else:
                # what they held would keep registers from here on
                forget(staged_l)
            row, column, following = turn * of_slice + top, turn * of_slice + first, (turn ^ 1) * of_slice + base
            # written out, because a loop would not be unrolled
            outer_add(acc, a, b, shared, row, column)
            outer_add(acc, a, b, shared, row + pitch_l, column + pitch_r)
            outer_add(acc, a, b, shared, row + 2 * pitch_l, column + 2 * pitch_r)
            outer_add(acc, a, b, shared, row + 3 * pitch_l, column + 3 * pitch_r)
            if halves:
                if left > 0:
                    put_l(staged_l, shared, following)
                    at_r = fetch_r(staged_r, right_source, at_r, left, before)
                else:
                    forget(staged_r)
            outer_add(acc, a, b, shared, row + 4 * pitch_l, column + 4 * pitch_r)
            outer_add(acc, a, b, shared, row + 5 * pitch_l, column + 5 * pitch_r)
            outer_add(acc, a, b, shared, row + 6 * pitch_l, column + 6 * pitch_r)
            outer_add(acc, a, b, shared, row + 7 * pitch_l, column + 7 * pitch_r)
            if left > 0:
                if not halves:
                    put_l(staged_l, shared, following)
                put_r(staged_r, shared, following + of_left)
            cuda.syncthreads()
        if groups > 1:
            add_groups(acc, shared)

    return multiply


def sum_of_groups(tile: Tile, real: Any) -> Any:
    """Return the device function (acc, shared) that adds up what the groups hold: acc[i, j] of the i-th row to finish.

    The buffers have room for half of the columns at once.
    """
    rows, groups, finished, half = tile.rows, tile.groups, tile.finished, tile.columns // 2
    group, move, last, of_row = group_of(tile), moved(real), tile.members - 1, tile.members * half
    of_group = rows * of_row

    @device
    def exchange(acc, shared, column):
        own, at = group(), (cuda.threadIdx.x & last) * half
        for i in range(rows):
            for j in range(half):
                shared[own * of_group + i * of_row + at + j] = move(acc[i, column + j])
        cuda.syncthreads()
        at += own * finished * of_row
        for i in range(finished):
            for j in range(half):
                total = shared[at + i * of_row + j]
                for other in range(1, groups):
                    total += shared[at + other * of_group + i * of_row + j]
                acc[i, column + j] = total
        cuda.syncthreads()

    @device
    def add(acc, shared):
        exchange(acc, shared, int32(0))
        exchange(acc, shared, int32(half))

    return add
