"""All launches of a call, from the plan that the schedule executes: prediction, unmeasured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from mcelbo_kernels.cuda.layout import Kind
from mcelbo_kernels.cuda.memory import chunk_memory
from mcelbo_kernels.cuda.model.counts import REGISTERS_TAKEN
from mcelbo_kernels.cuda.model.form import Batch, form, of_samples
from mcelbo_kernels.cuda.model.gpu import Launch
from mcelbo_kernels.cuda.model.passes import backward, draw, hidden, last, thin, weights
from mcelbo_kernels.cuda.model.span import Span
from mcelbo_kernels.cuda.model.sums import errors, latents, moments, parameters, pixels, slopes
from mcelbo_kernels.cuda.plan import plan_of


class Bytes:
    """A device that counts the bytes it is asked for."""

    def __init__(self) -> None:
        self.total = 0

    def empty(self, count: int, dtype: Any) -> None:
        """Count an array."""
        self.total += count * dtype.itemsize


def launches(kind: Kind, registers: Mapping[str, int] = REGISTERS_TAKEN, algorithm: str = "grid") -> list[Launch]:
    """Return all launches of a kind of call in their order: prediction, unmeasured.

    Parameters
    ----------
    kind : Kind
        Its samples begin at a multiple of four.
    registers : mapping from kernels' first names to int
        Registers of a thread where they are known; others take what the launch bounds leave.
    algorithm : {"grid", "gram"}
        As of `algorithms.value_and_gradients`.
    """
    if algorithm == "gram":
        batch = Batch(kind, registers)
        return [*batch.before(), *launches(of_samples(kind), registers), *batch.after()]
    plan, memory = plan_of(kind), Bytes()
    target: Any = memory
    chunk_memory(plan, target)
    spans = (
        Span(plan, begin, min(plan.length, kind.rows - begin), memory.total, registers)
        for begin in range(0, kind.rows, plan.length)
    )
    return [launch for span in spans for launch in chunk_launches(span) if launch.total]


def chunk_launches(span: Span) -> Iterator[Launch]:
    """Yield the launches of a chunk."""
    plan, need, sides = span.plan, span.kind.need, list(pairwise(span.kind.widths))
    if plan.thin is None:
        yield draw(span)
        yield from (hidden(span, index) for index in range(len(sides) - 1))
        yield form(span) if span.kind.quadratic else last(span)
    else:
        yield thin(span, plan.thin)
    if span.kind.keep:
        yield errors(span)
    elif span.kind.summed:
        yield from moments(span)
    if not need.gradient:
        return
    for index in reversed(range(len(sides))):
        product = plan.backward[index]
        if product is not None:
            yield backward(span, product, index)
            if index and product.parts > 1:
                yield slopes(span, product.parts, index)
    if plan.parts_of_dz and span.kind.lowest < 0:
        yield from latents(span)
    for item, wanted in ((plan.x, need.x), (plan.weight, need.weight)):
        if wanted:
            yield from pixels(span, item)
    for index, needed in enumerate(need.layers):
        if any(needed):
            product = plan.weights[index]
            if product is not None:
                yield weights(span, product, index)
            yield parameters(span, index)
