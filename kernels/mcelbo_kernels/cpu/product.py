"""The few products of matrices that are no part of a pass: C = A B by the register tile, of any strides.

    C[i, j] = sum_k A[i, k] B[k, j]

A task is some tiles of rows for one panel of columns. It goes through k in parts: B's part becomes a panel that stays
in the cache, and each tile's sum over the part is added to those before it. So no sum is long, and who took a task
changes no bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mcelbo_kernels._compile import jit, linked, part
from mcelbo_kernels.cpu.board import (
    DONE,
    RUN,
    TASK,
    THREADS,
    TICKET,
    atomic_add,
    atomic_load,
    go_on,
)
from mcelbo_kernels.cpu.buffers import address
from mcelbo_kernels.cpu.crew import carry_out
from mcelbo_kernels.cpu.layers import COLUMNS_OF_A_SUM, panels_of
from mcelbo_kernels.cpu.memory import Workspace, leave, take
from mcelbo_kernels.cpu.packing import array_at
from mcelbo_kernels.cpu.shape import Shape, host_shape, lanes_of, rows_of, width_of
from mcelbo_kernels.cpu.team import call_again
from mcelbo_kernels.cpu.tile import (
    accumulate,
    load_row,
    load_vector,
    outer_add,
    rows_up_to,
    store_tile,
    store_vector,
    zero_tile,
)
from mcelbo_kernels.cpu.transposition import load_block, store_block, transposed
from mcelbo_kernels.problem import Array

# The more tiles share a panel the better, as long as there is a task for each of a few threads.
TILES_OF_A_TASK = 16
TASKS = 4
# Below so many multiplications a kernel is not worth calling, and a helper not worth waking.
WORTH_A_KERNEL = 1 << 12
WORTH_A_HELPER = 1 << 20


class Factors(NamedTuple):
    """Where A (M, K) and B (K, N) lie, and their sizes; strides are in numbers."""

    a: int
    a_row: int
    a_column: int
    b: int
    b_row: int
    b_column: int
    rows: int
    terms: int
    columns: int
    tiles: int  # of a task
    add: bool  # whether C is added to


class Room(NamedTuple):
    """What the threads need beside the factors."""

    panels: Array  # (threads, terms of a part, width)
    sums: Array  # (threads, tiles of a task, rows, width)
    nbytes: int


# panel[k, j] = B[first + k, column + j], and 0 behind the columns of B
@linked
def pack_part(shape, factors, b, column, first, count, panel):
    width, lanes, down, across = width_of(shape), lanes_of(shape), factors.b_row, factors.b_column
    there, start = min(width, factors.columns - column), first * factors.b_row + column * factors.b_column
    packed = 0
    if there == width and across == 1:
        packed = count
        for k in range(count):
            store_tile(panel, k * width, load_row(shape, b, start + k * down))
    elif there == width and down == 1:
        packed = count // lanes * lanes
        for j in range(0, width, lanes):
            for k in range(0, packed, lanes):
                block = transposed(load_block(shape, b, start + j * across + k, across))
                store_block(panel, k * width + j, width, block)
    for k in range(packed, count):
        for j in range(there):
            panel[k * width + j] = b[start + k * down + j * across]
        for j in range(there, width):
            panel[k * width + j] = 0


# the tile sum_k A[i, k] panel[k], of a part
@part
def sum_of_products(shape, a, start, apart, step, panel, count):
    width, tile, whole = width_of(shape), zero_tile(shape), count // 4 * 4
    for k in range(0, whole, 4):
        for i in range(k, k + 4):
            tile = outer_add(shape, tile, a, start + i * step, apart, panel, i * width)
    for k in range(whole, count):
        tile = outer_add(shape, tile, a, start + k * step, apart, panel, k * width)
    return tile


# C[row : row + some tiles, column : column + width], or what is added to it
@linked
def multiply_block(shape, factors, row, column, panel, sums, c):
    rows, width = rows_of(shape), width_of(shape)
    a, b = array_at(c, factors.a), array_at(c, factors.b)
    stop = min(factors.rows, row + factors.tiles * rows)
    for first in range(0, factors.terms, COLUMNS_OF_A_SUM):
        count = min(COLUMNS_OF_A_SUM, factors.terms - first)
        pack_part(shape, factors, b, column, first, count, panel)
        for i in range(row, stop, rows):
            apart = rows_up_to(shape, stop - 1 - i, factors.a_row)
            start = i * factors.a_row + first * factors.a_column
            tile = sum_of_products(shape, a, start, apart, factors.a_column, panel, count)
            if first:
                accumulate(sums, (i - row) * width, tile)
            else:
                store_tile(sums, (i - row) * width, tile)
    there = min(width, factors.columns - column)
    whole = there // lanes_of(shape) * lanes_of(shape)
    for i in range(row, stop):
        start, place = (i - row) * width, i * factors.columns + column
        if factors.add:
            for j in range(there):
                c[place + j] += sums[start + j]
        else:
            for j in range(0, whole, lanes_of(shape)):
                store_vector(c, place + j, load_vector(shape, sums, start + j))
            for j in range(whole, there):
                c[place + j] = sums[start + j]


@jit
def multiply_blocks(shape, factors, room, c, board, number):
    """Fill c (M N,): all of it as number 0, or what is left to take."""
    if number < 0:
        call_again(board[RUN], board[THREADS])
        return
    panel, sums = room.panels[number].reshape(-1), room.sums[number].reshape(-1)
    of_a_task, panels = factors.tiles * rows_of(shape), panels_of(shape, factors.columns)
    tasks, opened, taken, turns = panels * -(-factors.rows // of_a_task), -1, False, 0
    while True:
        ticket = atomic_add(board, TICKET, 1) if taken else atomic_load(board, TICKET)
        if ticket < 0:
            return
        task = ticket & TASK
        if task < tasks and not taken:
            taken, turns = True, 0
            continue
        if task < tasks:
            row, column = task // panels * of_a_task, task % panels * width_of(shape)
            multiply_block(shape, factors, row, column, panel, sums, c)
            atomic_add(board, DONE, 1)
        else:
            opened, turns = go_on(board, number, opened, 0, tasks, turns)
        taken = False


def tiles_of_a_task(shape: Shape, rows: int, columns: int) -> int:
    """Return how many tiles of rows share a panel, for C (rows, columns)."""
    blocks = -(-TASKS // -(-columns // shape.width))
    return min(TILES_OF_A_TASK, -(-rows // (blocks * shape.rows)))


def forward(matrix: Array) -> Array:
    """Return the matrix, or a copy where an index in it can be negative, which counts from the end in a kernel."""
    return matrix if min(matrix.strides) >= 0 else matrix.copy()


def multiply(a: Array, b: Array, threads: int = 1, *, out: Array | None = None, add: bool = False) -> Array:
    """Return C = A B, or C + A B.

    Parameters
    ----------
    a, b : ndarray, shapes (M, K) and (K, N)
        Of one dtype, float32 or float64, and of any strides.
    threads : int
        How many threads may take part; the result does not depend on it.
    out : ndarray, shape (M, N), optional
        Where C is to be; contiguous.
    add : bool
        Whether the product is added to what is there.

    Returns
    -------
    ndarray, shape (M, N)

    Raises
    ------
    ValueError
        If shapes or dtypes do not go together.

    Examples
    --------
    >>> multiply(np.ones((2, 3)), np.ones((3, 1)))
    array([[3.],
           [3.]])
    """
    (rows, terms), columns = a.shape, b.shape[1]
    if len(b) != terms or a.dtype != b.dtype:
        raise ValueError(f"a is {a.dtype} {a.shape} and b {b.dtype} {b.shape}: expected (M, K) and (K, N) of one dtype")
    a, b = forward(a), forward(b)
    multiplications = rows * terms * columns
    c = np.empty((rows, columns), a.dtype) if out is None else out
    if multiplications < WORTH_A_KERNEL:
        # not by BLAS, which fetches some megabytes when it is called first
        start = c if add else c.dtype.type(0)
        np.add(start, np.einsum("ik,kj->ij", a, b), out=c)
        return c
    threads = threads if multiplications >= WORTH_A_HELPER else 1
    shape, size = host_shape(a.dtype.name), a.itemsize
    factors = Factors(
        address(a),
        a.strides[0] // size,
        a.strides[1] // size,
        address(b),
        b.strides[0] // size,
        b.strides[1] // size,
        rows,
        terms,
        columns,
        tiles_of_a_task(shape, rows, columns),
        add,
    )

    def make() -> Room:
        memory = Workspace()
        panels = memory.take((threads, COLUMNS_OF_A_SUM, shape.width), a.dtype)
        sums = memory.take((threads, TILES_OF_A_TASK, shape.rows, shape.width), a.dtype)
        return Room(panels, sums, memory.nbytes)

    kind = (multiply_blocks, shape, threads)
    room = take(kind, make)

    def take_part(board: Array, number: int) -> None:
        multiply_blocks(shape, factors, room, c.reshape(-1), board, number)

    carry_out(take_part, threads - 1, (multiply_blocks, shape))
    leave(kind, room)
    return c
