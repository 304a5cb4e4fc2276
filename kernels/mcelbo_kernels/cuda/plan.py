"""What a kind of call launches, and the memory that it needs: made once for a kind, and kept."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from mcelbo_kernels.cuda import backward, layers, quadratic, samples, sums
from mcelbo_kernels.cuda.layout import (
    Kind,
    cut_product,
    cut_weight_gradient,
    rows_of_a_chunk,
    rows_of_a_thin_block,
    tile_for,
    tiles,
    up,
    worth_a_launch,
)
from mcelbo_kernels.cuda.rows import DatumSum, sum_of_latents, sum_of_moments, sum_of_pixels
from mcelbo_kernels.cuda.seam import Kernel
from mcelbo_kernels.cuda.thin import Thin, shape_for, thin
from mcelbo_kernels.cuda.tile import Tile


class Product(NamedTuple):
    """A kernel whose blocks share out a matrix of `columns` columns, each of its `parts` a sum over `piece` terms."""

    kernel: Kernel
    tile: Tile
    columns: int
    parts: int = 1
    piece: int = 0

    def blocks(self, rows: int) -> tuple[int, int]:
        """Return the blocks for so many rows."""
        return tiles(self.tile, rows, self.columns), self.parts


class ThinPass(NamedTuple):
    """The kernel that takes the place of a thin decoder's products, its blocks those of `piece` rows by `tiles`."""

    kernel: Kernel
    tiles: int
    piece: int


class Plan(NamedTuple):
    """The kernels of a call; those that nothing needs are None.

    Attributes
    ----------
    length : int
        Rows of a chunk.
    thin : ThinPass or None
        In place of all products.
    draw : Kernel
    forward : tuple of Product
        Of each layer.
    errors : Kernel
        Adds the last layer's sums up to errors.
    moments : DatumSum
        Adds them up to the errors' moments.
    backward : tuple of Product or None
        Of each layer, from its da to that of the layer before it, or to dz.
    slopes : Kernel
        Adds up the parts of such a product, and turns them into da.
    weights : tuple of Product or None
        Of each layer, the gradients of its weight and bias.
    latents, x, weight : DatumSum
        The gradients of the posterior, the data and the pixel weights.
    """

    kind: Kind
    length: int
    thin: ThinPass | None
    draw: Kernel
    forward: tuple[Product, ...]
    errors: Kernel
    moments: DatumSum
    backward: tuple[Product | None, ...]
    slopes: Kernel
    weights: tuple[Product | None, ...]
    latents: DatumSum
    x: DatumSum
    weight: DatumSum

    def row_parts(self, index: int, rows: int) -> int:
        """Return how many parts the gradients of a layer's parameters come in, for so many rows."""
        product = self.thin or self.weights[index]
        return 0 if product is None else up(rows, product.piece)

    @property
    def columns(self) -> int:
        """How many tiles stand beside each other in the last layer's output."""
        return columns_of(self.thin or self.forward[-1])

    @property
    def parts_of_dz(self) -> int:
        """How many parts of dz add up to it: 0 where nothing needs it."""
        return parts_of_dz(self.kind, self.thin, self.backward[0])


@lru_cache(maxsize=256)
def plan_of(kind: Kind) -> Plan:
    """Choose the kernels of a kind of call."""
    length, real, lowest = min(rows_of_a_chunk(kind), max(1, kind.rows)), kind.real, kind.lowest
    sides, gradient = list(pairwise(kind.widths)), kind.need.gradient and not kind.thin
    whole = thin_pass(kind, length) if kind.thin else None
    forward = (*[hidden_product(kind, index, length) for index in range(len(sides) - 1)], last_product(kind, length))
    back = tuple(
        None if index <= lowest or not gradient or kind.symmetric(index) else backward_product(kind, index, length)
        for index in range(len(sides))
    )
    return Plan(
        kind,
        length,
        whole,
        samples.draw(kind.sampler, real, kind.quadratic and len(sides) == 1),
        forward,
        sums.finish_errors(real),
        sum_of_moments(kind, length, columns_of(whole or forward[-1])),
        back,
        sums.activation_gradient(real),
        tuple(
            weight_product(*sides[index], length, real, kind.upstream, kind.symmetric(index))
            if any(needed) and gradient
            else None
            for index, needed in enumerate(kind.need.layers)
        ),
        sum_of_latents(kind, length, parts_of_dz(kind, whole, back[0])),
        sum_of_pixels(kind, length, kind.samples),
        sum_of_pixels(kind, length, max(1, kind.rows) if kind.weights == 1 else kind.samples),
    )


def columns_of(last: Product | ThinPass) -> int:
    """Return how many tiles stand beside each other in the last layer's output."""
    return last.tiles if isinstance(last, ThinPass) else max(1, up(last.columns, last.tile.width))


def parts_of_dz(kind: Kind, whole: ThinPass | None, first: Product | None) -> int:
    """Return how many parts of dz a thin pass or the first layer's product leaves."""
    if whole is not None:
        return whole.tiles if kind.need.gradient else 0
    return int(kind.lowest < 0) if first is None else first.parts


def thin_pass(kind: Kind, rows: int) -> ThinPass:
    """Return the pass over a thin decoder."""
    latent, pixels = kind.widths
    columns, threads = shape_for(pixels, latent)
    name, gradient = kind.activations[0].name, kind.need.gradient
    spec = Thin(
        kind.real, name, kind.cell, kind.sampler, gradient, kind.weights > 0, kind.upstream, latent, columns, threads
    )
    across = max(1, up(pixels, columns * threads))
    return ThinPass(thin(spec), across, rows_of_a_thin_block(kind, rows, across))


def hidden_product(kind: Kind, index: int, rows: int) -> Product:
    """Return the product of a layer before the last."""
    (inputs, outputs), name = kind.widths[index : index + 2], kind.activations[index].name
    tile, centred = tile_for(rows, outputs, inputs, kind.real), kind.quadratic and index == len(kind.widths) - 3
    spec = layers.Hidden(tile, kind.real, name, kind.leaves_slope(index), centred)
    return Product(layers.hidden(spec), tile, outputs)


def last_product(kind: Kind, rows: int) -> Product:
    """Return the product of the last layer."""
    need, outputs, name = kind.need, kind.widths[-1], kind.activations[-1].name
    tile = tile_for(rows, outputs, kind.widths[-2], kind.real)
    if kind.quadratic:
        before = len(kind.widths) - 3
        form = quadratic.Form(tile, kind.real, need.gradient and before >= kind.lowest, before >= 0)
        return Product(quadratic.form(form), tile, outputs)
    spec = layers.Last(tile, kind.real, name, kind.cell, need.gradient, kind.weights > 0, need.x, need.weight)
    return Product(layers.last(spec), tile, outputs)


def backward_product(kind: Kind, index: int, rows: int) -> Product:
    """Return the product from a layer's da to the layer before it, or to dz, whose sum may be cut.

    That of a layer before it is only where so few blocks take so long that its parts are worth a further launch.
    """
    inputs, outputs = kind.widths[index], kind.widths[index + 1]
    cut = cut_in_parts(rows, inputs, outputs, kind.real)
    if index and (cut.parts == 1 or not worth_a_launch(rows, inputs, outputs, kind.real)):
        tile = tile_for(rows, inputs, outputs, kind.real)
        return Product(backward.backward(backward.Backward(tile, kind.real, True)), tile, inputs, 1, outputs)
    return cut


def cut_in_parts(
    rows: int, columns: int, terms: int, real: Any, transposed: bool = False, stored: Any = None
) -> Product:
    """Return the product of matrices (rows, terms) and (terms, columns), or its transpose, whose sum may be cut."""
    tile, parts, piece = cut_product(rows, columns, terms, real)
    spec = backward.Backward(tile, real, False, transposed, stored)
    return Product(backward.backward(spec), tile, columns, parts, piece)


def weight_product(inputs: int, outputs: int, rows: int, real: Any, upstream: bool, symmetric: bool = False) -> Product:
    """Return the product of a layer's weight gradient."""
    tile, parts, piece = cut_weight_gradient(rows, inputs, outputs, real, symmetric)
    spec = backward.WeightGradient(tile, real, upstream, symmetric)
    return Product(backward.weight_gradient(spec), tile, inputs, parts, piece)
