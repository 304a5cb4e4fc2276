"""The launches that add up what blocks left: prediction, unmeasured."""

from __future__ import annotations

from mcelbo_kernels.cuda.layout import up
from mcelbo_kernels.cuda.model import counts
from mcelbo_kernels.cuda.model.gpu import Launch
from mcelbo_kernels.cuda.model.span import LOADS, WIDE, Span
from mcelbo_kernels.cuda.sums import LANES_OF_PIXELS, THREADS, groups_for, lanes_for, parameter_gradient


def errors(span: Span) -> Launch:
    """Return the launch that adds up the errors of each row, or the moments of each datum."""
    kind, tiles, n = span.kind, span.plan.columns, span.kind.samples
    of_rows = counts.OF_A_ROW.plus(counts.OF_A_PART.times(tiles)).times(span.rows)
    blocks, serial, left = up(span.rows, THREADS), 1, span.rows
    if not kind.keep:
        blocks, serial, left = span.data(n), 1 + up(min(n, span.rows), THREADS), 4 * span.data(n)
    return span.launch(
        span.plan.errors,
        (blocks, 1),
        of_rows.plus(counts.OF_A_DATUM.times(blocks * THREADS)),
        read=tiles * span.rows,
        written=left,
        given=left,
        kept=tiles * span.rows,
        shared=0 if kind.keep else 2 * WIDE * THREADS,
        rounds=1 + serial * up(tiles, LOADS),
    )


def latents(span: Span) -> Launch:
    """Return the launch of the posterior's gradients."""
    latent, n, parts = span.kind.widths[0], span.kind.samples, span.plan.parts_of_dz
    lanes, number = lanes_for(latent), span.data(n)
    blocks, read = up(latent, lanes) * number, parts * span.rows * latent
    of_rows = span.redrawn.plus(counts.OF_A_PART.times(parts)).times(span.rows * up(latent, lanes) * lanes)
    return span.launch(
        span.plan.add_latents,
        (blocks, 1),
        of_rows.plus(counts.OF_A_DATUM.times(blocks * THREADS)),
        read=read + number * latent,
        written=2 * number * latent,
        given=3 * number * latent,
        kept=read,
        shared=2 * WIDE * THREADS,
        rounds=2 + up(min(n, span.rows) * lanes, THREADS) * up(parts, LOADS),
    )


def pixels(span: Span, n: int) -> Launch:
    """Return the launch of the gradients of the data, or of pixel weights, of which each has n rows."""
    outputs, number = span.kind.widths[-1], span.data(n)
    across, numbers = up(outputs, LANES_OF_PIXELS), span.rows * outputs
    return span.launch(
        span.plan.add_pixels,
        (across * number, 1),
        counts.OF_A_PART.times(numbers).plus(counts.OF_A_DATUM.times(across * number * THREADS)),
        read=numbers,
        written=number * outputs,
        given=number * outputs,
        kept=numbers,
        shared=WIDE * THREADS,
        rounds=2 + up(min(n, span.rows) * LANES_OF_PIXELS, THREADS * LOADS),
    )


def parameters(span: Span, index: int) -> Launch:
    """Return the launch that adds up the parts of a layer's weight and bias gradients."""
    inputs, outputs = span.kind.widths[index : index + 2]
    parts, size = span.plan.row_parts(index, span.rows), outputs * (inputs + 1)
    groups = groups_for(span.plan.row_parts(index, span.plan.length))
    blocks = up(size, THREADS // groups)
    return span.launch(
        parameter_gradient(span.kind.real, groups),
        (blocks, 1),
        counts.OF_A_PART.times(parts * size).plus(counts.OF_A_SUM.times(blocks * THREADS)),
        read=parts * size,
        written=size,
        given=size,
        kept=parts * size,
        shared=WIDE * THREADS,
        rounds=2 + up(up(parts, groups), LOADS),
    )
