"""The fused pass over the (sample, pixel) grid of a decoder of affine layers and activations.

A row is one sample of one datum, q = b n + i, and rows are taken in chunks of a fixed length: nothing longer than a
chunk is stored. A call goes through phases, each a number of tasks that any thread may take:

    packing         the layers' weights into panels, once
    for each chunk
        row tasks   for a few tiles of rows:  z = mu + sigma eps,  h and a layer by layer,  t and da = dt/da,
                    T = sum t,  da layer by layer back to dz
        panel tasks for every panel of every layer's outputs, rows in order:  dW^T += h^T da,  dc += sum da
                    (and dx, dw);  one for the rows' sums:  moments of T,  dmu += dz,  dlogvar += dz eps sigma / 2
    unpacking       the layers' gradients out of panels, once

The kernels compute with unit weight for every sample; the samples' weights g scale the left operand of the weight
products and the rows of dz. Sums over rows are in the problem's precision within a chunk and float64 across chunks. Who
took a task changes no bit.
"""

from __future__ import annotations

from mcelbo_kernels._compile import jit, part
from mcelbo_kernels.cpu.board import (
    DONE,
    PHASE,
    RUN,
    TASK,
    THREADS,
    TICKET,
    atomic_add,
    atomic_load,
    go_on,
)
from mcelbo_kernels.cpu.buffers import INPUTS, OUTPUTS, TOTAL, own_scratch
from mcelbo_kernels.cpu.cell import has_gradient, is_thin, is_whole
from mcelbo_kernels.cpu.layers import (
    backward,
    hidden_forward,
    last_forward,
    panels_of,
    pixel_gradient,
    weight_gradient,
)
from mcelbo_kernels.cpu.packing import pack_inputs, pack_outputs, unpack_gradient
from mcelbo_kernels.cpu.quadratic import quadratic_forward, sum_deltas
from mcelbo_kernels.cpu.samples import draw, reduce_rows, scale_rows
from mcelbo_kernels.cpu.shape import rows_of
from mcelbo_kernels.cpu.team import call_again
from mcelbo_kernels.cpu.thin import add_sums, thin_pass


@part
def row_task(shape, cell, inputs, task, first, start, stop, chunk, scratch):
    draw(shape, inputs, first, start, stop, chunk, scratch)
    tiles, last = -(-(stop - start) // rows_of(shape)), inputs.layers.shape[0] - 1
    for index in range(last):
        hidden_forward(shape, cell, inputs, index, start, tiles, chunk, scratch)
    last_forward(shape, cell, inputs, start, tiles, chunk, scratch)
    quadratic_forward(shape, cell, inputs, start, tiles, chunk, scratch)
    thin_pass(shape, cell, inputs, start, stop, chunk, scratch, chunk.sums[task])
    if has_gradient(cell):
        for index in range(last - is_whole(cell), inputs.lowest, -1):
            backward(shape, cell, inputs, index, start, tiles, chunk, scratch)
        if inputs.upstream.size and not is_thin(cell):
            scale_rows(shape, inputs, start, stop, chunk)


@part
def panel_task(shape, cell, inputs, task, rows, first, count, chunk, scratch, totals):
    # the last layer's are the longest as a rule, and those that come last should be short
    for index in range(inputs.layers.shape[0] - 1, -1, -1):
        layer = inputs.layers[index]
        panels = panels_of(shape, layer[OUTPUTS])
        if task < panels:
            if layer[TOTAL] >= 0:
                weight_gradient(shape, cell, layer, task, first, count, chunk, scratch, totals)
                add_sums(shape, cell, layer, task, first, -(-count // rows), chunk, totals)
            if index == inputs.layers.shape[0] - 1:
                if totals.x.size:
                    sum_deltas(shape, cell, inputs, layer, task, first, count, chunk, scratch, totals.x)
                    pixel_gradient(shape, cell, task, count, chunk, totals.x, chunk.dx, False)
                if totals.weight.size:
                    pixel_gradient(shape, cell, task, count, chunk, totals.weight, chunk.dw, inputs.weight_stride == 0)
            return
        task -= panels


@part
def pack_task(shape, cell, inputs, task, chunk):
    for index in range(inputs.layers.shape[0]):
        layer = inputs.layers[index]
        panels = panels_of(shape, layer[OUTPUTS])
        if task < panels:
            pack_outputs(shape, layer, task, chunk.weights)
            return
        task -= panels
        passed = has_gradient(cell) and inputs.lowest < index < inputs.layers.shape[0] - is_whole(cell)
        panels = panels_of(shape, layer[INPUTS]) if passed else 0
        if task < panels:
            pack_inputs(shape, cell, layer, task, chunk.weights)
            return
        task -= panels


@part
def unpack_task(shape, cell, inputs, task, chunk, totals):
    for index in range(inputs.layers.shape[0]):
        layer = inputs.layers[index]
        panels = panels_of(shape, layer[OUTPUTS])
        if task < panels:
            if layer[TOTAL] >= 0:
                unpack_gradient(shape, cell, layer, task, chunk.weights, totals, inputs.scale)
            return
        task -= panels


# panels of all layers' outputs, and with `both` of those inputs that gradients pass
@part
def count_panels(shape, cell, inputs, both):
    count = 0
    for index in range(inputs.layers.shape[0]):
        count += panels_of(shape, inputs.layers[index, OUTPUTS])
        if both and inputs.lowest < index < inputs.layers.shape[0] - is_whole(cell):
            count += panels_of(shape, inputs.layers[index, INPUTS])
    return count


@jit
def work(shape, cell, inputs, begin, end, chunk, scratches, totals, board, number):
    """Take rows begin to end, chunk by chunk, and add up `totals`: all of it as number 0, or what is left to take."""
    if number < 0:
        call_again(board[RUN], board[THREADS])
        return
    scratch = own_scratch(scratches, number)
    capacity, rows = chunk.datum.size, rows_of(shape) * scratch.partial.shape[0]
    total = inputs.mu.shape[0] * inputs.num_samples
    packing = count_panels(shape, cell, inputs, has_gradient(cell)) if begin == 0 else 0
    panels = count_panels(shape, cell, inputs, False) if has_gradient(cell) else 0
    unpacking = panels if end == total else 0
    last = -(-(end - begin) // capacity) * 2 + 1
    opened, taken, turns = -1, False, 0
    while True:
        ticket = atomic_add(board, TICKET, 1) if taken else atomic_load(board, TICKET)
        if ticket < 0:
            return
        phase, task = ticket >> PHASE, ticket & TASK
        first = begin + (phase - 1) // 2 * capacity
        count = min(capacity, end - first)
        if phase == 0:
            tasks = packing
        elif phase == last:
            tasks = unpacking
        else:
            tasks = -(-count // rows) if phase % 2 else 1 + panels
        if task < tasks and not taken:
            # there seems to be something to take: whatever the next ticket says is then ours
            taken, turns = True, 0
            continue
        if task < tasks:
            if phase == 0:
                pack_task(shape, cell, inputs, task, chunk)
            elif phase == last:
                unpack_task(shape, cell, inputs, task, chunk, totals)
            elif phase % 2:
                start, stop = task * rows, min((task + 1) * rows, count)
                row_task(shape, cell, inputs, task, first, start, stop, chunk, scratch)
            elif task == 0:
                reduce_rows(shape, inputs, first, count, chunk, scratch, totals)
            else:
                panel_task(shape, cell, inputs, task - 1, rows, first, count, chunk, scratch, totals)
            atomic_add(board, DONE, 1)
        else:
            opened, turns = go_on(board, number, opened, last, tasks, turns)
        taken = False
