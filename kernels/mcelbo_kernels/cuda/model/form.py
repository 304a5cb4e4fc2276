"""The launches of a call by the quadratic form of the last hidden layer, see `gram`: prediction, unmeasured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from mcelbo_kernels.cuda import quadratic
from mcelbo_kernels.cuda.gram import need_of_samples, products_of
from mcelbo_kernels.cuda.layout import QUADRATIC, Kind, up
from mcelbo_kernels.cuda.model import counts
from mcelbo_kernels.cuda.model.counts import Count
from mcelbo_kernels.cuda.model.gpu import Launch
from mcelbo_kernels.cuda.model.passes import NOTHING, half_of, layer_output, product
from mcelbo_kernels.cuda.model.span import LOADS, WIDE, Span
from mcelbo_kernels.cuda.plan import Product, plan_of
from mcelbo_kernels.cuda.seam import Kernel
from mcelbo_kernels.cuda.sums import LANES_OF_PIXELS, THREADS, groups_for, parameter_gradient


def of_samples(kind: Kind) -> Kind:
    """Return the call that passes over the samples of a call by the quadratic form."""
    widths = (*kind.widths[:-1], kind.widths[-2])
    return kind._replace(widths=widths, cell=QUADRATIC, weights=0, need=need_of_samples(kind.need))


class Batch:
    """The launches about the batch, before the pass over the samples and behind it."""

    def __init__(self, kind: Kind, registers: Mapping[str, int]) -> None:
        self.kind, self.products = kind, products_of(kind)
        # the batch's matrices stay in the cache
        self.span = Span(plan_of(of_samples(kind)), 0, kind.batch, 0, registers)
        self.width, self.pixels = kind.widths[-2:]
        self.size, self.wide = kind.batch * self.pixels, WIDE // kind.dtype.itemsize

    def before(self) -> Iterator[Launch]:
        """Yield the launches that make the form."""
        products, kind, weights = self.products, self.kind, self.kind.weights
        sides = pairwise(kind.widths)
        for item, (inputs, outputs), activation in zip(products.hidden, sides, kind.activations, strict=False):
            yield layer_output(self.span, item, kind.batch, inputs, outputs, activation.name, gradient=False)
        yield self.multiply(products.centre, kind.batch, self.width, wide=True)
        yield self.add_up(
            quadratic.centre_errors(kind.real, weights > 0, kind.need.weight),
            kind.batch,
            self.size,
            products.centre.parts * self.wide,
            read=self.size * (2 + (weights > 0)),
            written=self.size * (1 + kind.need.weight) + kind.batch * self.wide,
            shared=WIDE * THREADS,
        )
        yield self.multiply(products.coupling, kind.batch, self.pixels)
        square = self.multiply(products.square, self.width, self.pixels, sums=True)
        yield half_of(square, products.square, self.width)
        yield self.parts_of(products.square.parts, self.width**2, self.width)
        if products.coupling.parts > 1:
            yield self.parts_of(products.coupling.parts, kind.batch * self.width)

    def after(self) -> Iterator[Launch]:
        """Yield the launches from the pass's sums to the gradients of data, weights and the last layer."""
        kind, products, need, weighted = self.kind, self.products, self.kind.need, self.kind.weights > 0
        sums, squares = need_of_samples(need).x, need_of_samples(need).layers[-1][0]
        if not sums:
            return
        of_layer, size = need.layers[-1], self.pixels * self.width
        yield self.multiply(products.change, kind.batch, self.width)
        yield self.add_up(
            quadratic.residuals(quadratic.Residuals(kind.real, weighted, need.x, need.weight, any(of_layer))),
            up(self.size, THREADS),
            self.size,
            products.change.parts,
            read=self.size * (1 + weighted),
            written=self.size * (any(of_layer) + need.x + need.weight),
        )
        if squares:
            yield self.multiply(products.squares, self.pixels, self.width)
        if need.weight:
            yield self.add_up(
                quadratic.pixel_weight_gradient(kind.real),
                up(self.pixels, LANES_OF_PIXELS),
                self.size + size,
                products.squares.parts,
                read=2 * self.size + size,
                written=self.pixels,
                shared=WIDE * (THREADS + LANES_OF_PIXELS * (LANES_OF_PIXELS + 1)),
            )
        if any(of_layer):
            for _ in range(1 + of_layer[0]):
                yield self.multiply(products.outer, self.pixels, kind.batch, sums=True)
            yield self.add_up(
                quadratic.layer_gradient(kind.real, weighted),
                up(size + self.pixels, THREADS),
                size,
                2 * products.outer.parts + products.squares.parts,
                read=size * weighted,
                written=size + self.pixels,
            )

    def multiply(self, item: Product, rows: int, terms: int, *, wide: bool = False, sums: bool = False) -> Launch:
        """Return the launch of a product; `wide` in float64, with `sums` of its left factor's rows behind it."""
        left = item.parts * rows * (item.columns + sums)
        found = product(
            self.span,
            item,
            item.blocks(rows),
            rows,
            terms,
            counts.OF_A_NUMBER,
            beside=0,
            written=left * (self.wide if wide else 1),
            given=item.columns * terms,
            kept=rows * terms + left,
        )
        return found._replace(double=True, shared=found.shared * self.wide) if wide else found

    def add_up(
        self,
        kernel: Kernel,
        blocks: int,
        numbers: int,
        parts: int,
        *,
        read: int,
        written: int,
        shared: int = 0,
    ) -> Launch:
        """Return the launch of a second stage that adds up the parts of so many numbers."""
        every = counts.OF_A_PART.times(numbers * parts).plus(counts.OF_A_ROW.times(numbers))
        kept = numbers * parts + read + written
        rounds = 1 + up(numbers, blocks * THREADS) * up(parts, LOADS)
        total = numbers * parts + read
        return self.span.launch(
            kernel, (blocks, 1), every, read=total, written=written, kept=kept, shared=shared, rounds=rounds
        )

    def parts_of(self, parts: int, size: int, beside: int = 0) -> Launch:
        """Return the launch that adds up the parts of a matrix; of a symmetric one if there are others beside."""
        groups = groups_for(parts)
        return self.add_up(
            parameter_gradient(self.kind.real, groups, beside > 0),
            up(size + beside, THREADS // groups),
            size,
            parts,
            read=0,
            written=size,
            shared=WIDE * THREADS,
        )


def form(span: Span) -> Launch:
    """Return the launch that passes over the samples' differences from their centres."""
    kind, item, rows, width = span.kind, span.plan.forward[-1], span.rows, span.kind.widths[-1]
    gradient, slope = kind.need.gradient and len(kind.widths) - 3 >= kind.lowest, len(kind.widths) > 2
    in_block = up(min(rows, item.tile.height), kind.samples)
    left = rows * (width * gradient + span.plan.columns)
    return product(
        span,
        item,
        item.blocks(rows),
        rows,
        width,
        Count(4, 9).plus(counts.OF_A_SLOPE if gradient else NOTHING),
        beside=rows * width * (1 + (gradient and slope)) + up(rows, item.tile.height) * width * in_block,
        shared=4 * item.tile.height,
        written=left,
        given=span.data(kind.samples) * width,
        kept=rows * width + left,
    )
