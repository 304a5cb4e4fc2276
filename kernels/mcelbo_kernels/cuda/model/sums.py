"""The launches that add up what blocks left: prediction, unmeasured."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from mcelbo_kernels.cuda.datum import AT_ONCE
from mcelbo_kernels.cuda.layout import up
from mcelbo_kernels.cuda.model import counts
from mcelbo_kernels.cuda.model.counts import Count
from mcelbo_kernels.cuda.model.gpu import Launch
from mcelbo_kernels.cuda.model.span import LOADS, WIDE, Span
from mcelbo_kernels.cuda.rows import DatumSum
from mcelbo_kernels.cuda.sums import THREADS, groups_for, parameter_gradient


def errors(span: Span) -> Launch:
    """Return the launch that adds up the errors of each row."""
    tiles = span.plan.columns
    return span.launch(
        span.plan.errors,
        (up(span.rows, THREADS), 1),
        counts.OF_A_ROW.plus(counts.OF_A_PART.times(tiles)).times(span.rows),
        read=tiles * span.rows,
        written=span.rows,
        given=span.rows,
        kept=tiles * span.rows,
        rounds=1 + up(tiles, LOADS),
    )


def of_data(
    span: Span, item: DatumSum, parts: int, turn: Count, end: Count, *, read: float, given: float, written: float
) -> Iterator[Launch]:
    """Yield the launches that add up the rows of each datum.

    `parts` are numbers that add up to one of a row, `turn` the instructions of a thread's rows at once beside them,
    `end` those of a result. So many numbers are read beside the rows, are the problem's or its results, and written.
    """
    number, groups = span.data(item.n), THREADS // item.lanes
    across = up(item.columns, item.lanes) * item.lanes
    turns, rows = max(number, up(span.rows, AT_ONCE)) * across, min(item.n, span.rows, item.piece)
    results, size = number * item.columns, parts * span.rows * item.columns
    left = WIDE / span.kind.dtype.itemsize * item.values * results * (item.parts if item.parts > 1 else 0)
    of_rows = turn.plus(counts.OF_A_PART.times(AT_ONCE * parts), counts.OF_A_TURN).times(turns)
    of_parts = counts.OF_A_PART.times(item.values * results * item.parts)
    for kernel, blocks in zip(item.kernels, item.blocks(number), strict=True):
        first, last = kernel is item.kernels[0], kernel is item.kernels[-1]
        rounds = up(rows, groups * AT_ONCE) * up(parts, LOADS) if first else up(up(item.parts, groups), LOADS)
        yield span.launch(
            kernel,
            blocks,
            (of_rows if first else of_parts).plus(
                counts.OF_A_DATUM.times(prod(blocks) * THREADS), end.times(results * last)
            ),
            read=(size if first else left) + read * last,
            written=written if last else left,
            given=given if last else 0,
            kept=(size if first else 0) + left,
            shared=item.values * WIDE * THREADS,
            rounds=2 + rounds,
        )


def moments(span: Span) -> Iterator[Launch]:
    """Yield the launches of the moments of each datum's errors."""
    number = span.data(span.kind.samples)
    results = 2 * number * WIDE / span.kind.dtype.itemsize
    sizes = {"read": 0, "given": results, "written": results}
    return of_data(span, span.plan.moments, span.plan.columns, Count(), Count(), **sizes)


def latents(span: Span) -> Iterator[Launch]:
    """Yield the launches of the posterior's gradients."""
    results = span.data(span.kind.samples) * span.kind.widths[0]
    sizes = {"read": results, "given": 3 * results, "written": 2 * results}
    return of_data(span, span.plan.latents, span.plan.parts_of_dz, span.redrawn, counts.OF_A_DEVIATION, **sizes)


def pixels(span: Span, item: DatumSum) -> Iterator[Launch]:
    """Yield the launches of the gradients of the data, or of pixel weights."""
    results = span.data(item.n) * item.columns
    return of_data(span, item, 1, Count(), Count(), read=0, given=results, written=results)


def slopes(span: Span, parts: int, index: int) -> Launch:
    """Return the launch that adds up the parts of a layer's da."""
    size = span.rows * span.kind.widths[index]
    return span.launch(
        span.plan.slopes,
        (up(size, THREADS), 1),
        counts.OF_A_ROW.plus(counts.OF_A_PART.times(parts)).times(size),
        read=(parts + 1) * size,
        written=size,
        kept=(parts + 1) * size,
        rounds=1 + up(parts, LOADS),
    )


def parameters(span: Span, index: int) -> Launch:
    """Return the launch that adds up the parts of a layer's weight and bias gradients."""
    inputs, outputs = span.kind.widths[index : index + 2]
    parts, size = span.plan.row_parts(index, span.rows), outputs * (inputs + 1)
    groups = groups_for(span.plan.row_parts(index, span.plan.length))
    blocks = up(size, THREADS // groups)
    return span.launch(
        parameter_gradient(span.kind.real, groups, span.kind.symmetric(index)),
        (blocks, 1),
        counts.OF_A_PART.times(parts * size).plus(counts.OF_A_SUM.times(blocks * THREADS)),
        read=parts * size,
        written=size,
        given=size,
        kept=parts * size,
        shared=WIDE * THREADS,
        rounds=2 + up(up(parts, groups), LOADS),
    )
