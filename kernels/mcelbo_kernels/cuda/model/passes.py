"""The launches up to the errors of tiles, and those of the products back: prediction, unmeasured."""

from __future__ import annotations

import math

from mcelbo_kernels.cuda.layers import WAITING
from mcelbo_kernels.cuda.layout import up
from mcelbo_kernels.cuda.model import counts
from mcelbo_kernels.cuda.model.counts import Count
from mcelbo_kernels.cuda.model.gpu import Launch
from mcelbo_kernels.cuda.model.span import WIDE, Span
from mcelbo_kernels.cuda.noise import INJECTED, ROWS_OF_A_THREAD
from mcelbo_kernels.cuda.plan import Product, ThinPass
from mcelbo_kernels.cuda.product import shared_size
from mcelbo_kernels.cuda.sums import THREADS
from mcelbo_kernels.cuda.thin import GROUPS, ROWS_OF_A_BLOCK, Thin, shape_for
from mcelbo_kernels.cuda.tile import SLICE

INDEPENDENT = 4  # neighbouring multiply-adds of a tile, and cells of a thread
NOTHING = Count()


def draw(span: Span) -> Launch:
    """Return the launch that draws z."""
    kind, injected = span.kind, span.kind.sampler == INJECTED
    numbers = span.rows * kind.widths[0]
    threads = up(span.rows, ROWS_OF_A_THREAD) * kind.widths[0]
    given = 2 * span.data(kind.samples) * kind.widths[0] + injected * numbers
    return span.launch(
        span.plan.draw,
        (up(threads, THREADS), 1),
        counts.OF_FOUR_DRAWS[injected].times(threads),
        read=given,
        written=numbers,
        given=given,
        kept=numbers,
        rounds=2,
    )


def product(
    span: Span,
    item: Product,
    blocks: tuple[int, int],
    rows: int,
    terms: int,
    cell: Count,
    *,
    beside: int,
    shared: int = 0,
    more: Count = NOTHING,
    **bytes_: int,
) -> Launch:
    """Return the launch of a product with so many rows, and so many terms in the sums of all parts.

    `cell` are the instructions of a number of the result, `more` further ones in all; `beside` are numbers that are
    read beside the operands, `shared` bytes beside their buffers.
    """
    tile, columns, number = item.tile, item.columns, turns(item, terms)
    down, across, parts = up(rows, tile.height), max(1, up(columns, tile.width)), blocks[1]
    threads = down * across * tile.threads
    of_threads = counts.of_turn(tile).times(number).plus(counts.OF_A_TILE.plus(counts.of_groups(tile)).times(parts))
    operands = rows * terms * across + columns * terms * down
    return span.launch(
        item.kernel,
        blocks,
        of_threads.times(threads).plus(cell.times(down * tile.height * across * tile.width * parts), more),
        read=operands + beside,
        shared=span.kind.dtype.itemsize * shared_size(tile) + WIDE * WAITING + shared,
        products=rows * columns * terms,
        fmas=threads * tile.rows * tile.columns * number * SLICE,
        # a slice is fetched while the one before it is multiplied, and is waited for only where that is too short
        rounds=2 + up(number, parts),
        independent=INDEPENDENT,
        **bytes_,
    )


def half_of(launch: Launch, item: Product, rows: int) -> Launch:
    """Return a launch of a symmetric matrix, whose blocks above the diagonal do nothing."""
    across, down = up(item.columns, item.tile.width), up(rows, item.tile.height)
    busy = sum(min(across, up((row + 1) * item.tile.height, item.tile.width)) for row in range(down))
    fields = ("read", "written", "products", "fmas", "floats", "others", "special", "wide")
    return launch._replace(**{name: getattr(launch, name) * busy / (across * down) for name in fields})


def turns(item: Product, terms: int) -> int:
    """Return how many slices a thread multiplies in all parts; groups without a slice in the last turn wait."""
    whole, rest = divmod(terms, item.piece or max(1, terms))
    step = SLICE * item.tile.groups
    return whole * up(item.piece or terms, step) + up(rest, step)


def hidden(span: Span, index: int) -> Launch:
    """Return the launch of the output of a layer before the last."""
    kind, (inputs, outputs) = span.kind, span.kind.widths[index : index + 2]
    name, gradient = kind.activations[index].name, kind.leaves_slope(index)
    return layer_output(span, span.plan.forward[index], span.rows, inputs, outputs, name, gradient=gradient)


def layer_output(
    span: Span, item: Product, rows: int, inputs: int, outputs: int, name: str, *, gradient: bool
) -> Launch:
    """Return the launch of a layer's output for so many rows, of an activation by its name."""
    left = rows * outputs * (1 + gradient)
    return product(
        span,
        item,
        item.blocks(rows),
        rows,
        inputs,
        counts.OF_A_HIDDEN_CELL[gradient].plus(counts.of_activation(name, gradient)),
        beside=up(rows, item.tile.height) * outputs,
        shared=4 * item.tile.height,
        written=left,
        given=outputs * (inputs + 1),
        kept=rows * inputs + left,
    )


def last(span: Span) -> Launch:
    """Return the launch of the last layer and its errors."""
    kind, item, rows, need = span.kind, span.plan.forward[-1], span.rows, span.kind.need
    (inputs, outputs), name, weighted = kind.widths[-2:], kind.activations[-1].name, kind.weights > 0
    cell = counts.OF_A_CELL[need.gradient].plus(counts.of_cell(kind.cell, name, need.gradient, weighted))
    down, tiles = up(rows, item.tile.height), math.prod(item.blocks(rows))
    # pixels come through the second-level cache once for each datum in a block
    data, in_block = 1 + weighted, up(min(rows, item.tile.height), kind.samples)
    left = rows * (outputs * (need.gradient + need.x + need.weight) + span.plan.columns)
    return product(
        span,
        item,
        item.blocks(rows),
        rows,
        inputs,
        cell,
        beside=down * outputs * (1 + data * in_block),
        shared=4 * item.tile.height,
        more=counts.OF_A_LAST_TILE.times(tiles * item.tile.threads),
        written=left,
        given=outputs * (inputs + 1) + data * span.data(kind.samples) * outputs,
        kept=rows * inputs + left,
    )


def thin(span: Span, item: ThinPass) -> Launch:
    """Return the launch of the pass over a thin decoder."""
    kind, rows, (latent, outputs), gradient = span.kind, span.rows, span.kind.widths, span.kind.need.gradient
    blocks, threads = (up(rows, item.piece), item.tiles), item.kernel.threads
    columns, _ = shape_for(outputs, latent)
    spec = Thin(kind.real, "", "", "", gradient, kind.weights > 0, kind.upstream, latent, columns, threads)
    samples, layer, data = rows * item.tiles * threads, outputs * (latent + 1), outputs * (1 + (kind.weights > 0))
    left = rows * item.tiles * spec.values + gradient * blocks[0] * layer
    given = layer + data * span.data(kind.samples)
    cell = counts.OF_A_THIN_CELL[gradient].plus(
        counts.of_cell(kind.cell, kind.activations[0].name, gradient, kind.weights > 0)
    )
    drawn = counts.OF_A_THIN_LATENT.times(rows * item.tiles * latent)
    of_threads = counts.OF_A_THIN_THREAD.times(math.prod(blocks) * threads)
    sums = spec.values * spec.rows * (threads + 2 * GROUPS)
    return span.launch(
        item.kernel,
        blocks,
        cell.times(columns).plus(counts.OF_A_THIN_SAMPLE).times(samples).plus(drawn, of_threads),
        read=blocks[0] * (layer + data * up(item.piece, kind.samples)),
        written=left,
        given=given,
        kept=left,
        shared=kind.dtype.itemsize * (ROWS_OF_A_BLOCK * (latent + 1) + sums) + 4 * ROWS_OF_A_BLOCK,
        products=rows * outputs * latent * (1 + 2 * gradient),
        fmas=samples * columns * latent * (1 + 2 * gradient),
        rounds=2 + up(item.piece, kind.samples),
        independent=min(INDEPENDENT, columns),
    )


def backward(span: Span, item: Product, index: int) -> Launch:
    """Return the launch from a layer's da to that of the layer before it, or to dz."""
    inputs, outputs = span.kind.widths[index : index + 2]
    whole = index > 0 and item.parts == 1
    numbers, cell = span.rows * inputs, counts.OF_A_SLOPE if whole else counts.OF_A_NUMBER
    slopes, left = numbers * whole, numbers * item.parts
    # below the last row it is read again
    again = up(span.rows, item.tile.height) * item.tile.height * inputs * whole
    return product(
        span,
        item,
        item.blocks(span.rows),
        span.rows,
        outputs,
        cell,
        beside=again,
        written=left,
        given=inputs * outputs,
        kept=span.rows * outputs + left + slopes,
    )


def weights(span: Span, item: Product, index: int) -> Launch:
    """Return the launch of a layer's weight and bias gradients in parts."""
    inputs, outputs = span.kind.widths[index : index + 2]
    across, blocks = item.blocks(outputs)[0], up(span.rows, item.piece)
    left, factors = blocks * outputs * (inputs + 1), span.rows * span.kind.upstream
    found = product(
        span,
        item,
        (across, blocks),
        outputs,
        span.rows,
        counts.OF_A_NUMBER,
        beside=factors,
        more=counts.OF_A_BIAS.times(across * item.tile.height * item.tile.groups * turns(item, span.rows) * SLICE),
        written=left,
        given=factors,
        kept=span.rows * (inputs + outputs) + left,
    )
    return half_of(found, item, outputs) if span.kind.symmetric(index) else found
