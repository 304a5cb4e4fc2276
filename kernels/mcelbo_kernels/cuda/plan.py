"""What a kind of call launches, and the memory that it needs: made once for a kind, and kept."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from mcelbo_kernels.cuda import layers, quadratic, samples, sums
from mcelbo_kernels.cuda.layout import (
    Kind,
    cut_product,
    cut_weight_gradient,
    rows_of_a_chunk,
    tile_for,
    tiles,
    up,
)
from mcelbo_kernels.cuda.seam import Kernel
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


class Plan(NamedTuple):
    """The kernels of a call; those that nothing needs are None.

    Attributes
    ----------
    length : int
        Rows of a chunk.
    draw : Kernel
    forward : tuple of Product
        Of each layer.
    errors : Kernel
        Adds the last layer's sums up to errors, or their moments.
    backward : tuple of Product or None
        Of each layer, from its da to that of the layer before it, or to dz.
    weights : tuple of Product or None
        Of each layer, the gradients of its weight and bias.
    add_latents, add_pixels : Kernel
    add_parts : tuple of Kernel
        Of each layer.
    """

    kind: Kind
    length: int
    draw: Kernel
    forward: tuple[Product, ...]
    errors: Kernel
    backward: tuple[Product | None, ...]
    weights: tuple[Product | None, ...]
    add_latents: Kernel
    add_pixels: Kernel
    add_parts: tuple[Kernel, ...]

    @property
    def columns(self) -> int:
        """How many tiles stand beside each other in the last layer's output."""
        last = self.forward[-1]
        return up(last.columns, last.tile.width)

    @property
    def parts_of_dz(self) -> int:
        """How many parts of dz add up to it: 0 where nothing needs it."""
        first = self.backward[0]
        return int(self.kind.lowest < 0) if first is None else first.parts


@lru_cache(maxsize=256)
def plan_of(kind: Kind) -> Plan:
    """Choose the kernels of a kind of call."""
    length, real, lowest = min(rows_of_a_chunk(kind), max(1, kind.rows)), kind.real, kind.lowest
    latent, sides = kind.widths[0], list(pairwise(kind.widths))
    # a quadratic form's gradient is symmetric, and its kernel goes back through it too
    symmetries = *[False] * (len(sides) - 1), kind.quadratic
    return Plan(
        kind,
        length,
        samples.draw(kind.sampler, real, kind.quadratic and len(sides) == 1),
        (*[hidden_product(kind, index, length) for index in range(len(sides) - 1)], last_product(kind, length)),
        sums.finish_errors(real) if kind.keep else sums.moments(real, kind.quadratic),
        tuple(
            backward_product(kind, index, length) if index > lowest and kind.need.gradient and not symmetric else None
            for index, symmetric in enumerate(symmetries)
        ),
        tuple(
            weight_product(inputs, outputs, length, real, kind.upstream, symmetric) if any(needed) else None
            for needed, (inputs, outputs), symmetric in zip(kind.need.layers, sides, symmetries, strict=True)
        ),
        sums.latent_gradient(kind.sampler, real, sums.lanes_for(latent), kind.upstream),
        sums.pixel_gradient(real, kind.upstream),
        tuple(sums.parameter_gradient(real, symmetric) for symmetric in symmetries),
    )


def hidden_product(kind: Kind, index: int, rows: int) -> Product:
    """Return the product of a layer before the last."""
    outputs, name = kind.widths[index + 1], kind.activations[index].name
    tile, centred = tile_for(rows, outputs, kind.real), kind.quadratic and index == len(kind.widths) - 3
    spec = layers.Hidden(tile, kind.real, name, kind.leaves_slope(index), centred)
    return Product(layers.hidden(spec), tile, outputs)


def last_product(kind: Kind, rows: int) -> Product:
    """Return the product of the last layer."""
    need, outputs, name = kind.need, kind.widths[-1], kind.activations[-1].name
    tile = tile_for(rows, outputs, kind.real)
    if kind.quadratic:
        before = len(kind.widths) - 3
        form = quadratic.Form(tile, kind.real, need.gradient and before >= kind.lowest, before >= 0)
        return Product(quadratic.form(form), tile, outputs)
    spec = layers.Last(tile, kind.real, name, kind.cell, need.gradient, kind.weights > 0, need.x, need.weight)
    return Product(layers.last(spec), tile, outputs)


def backward_product(kind: Kind, index: int, rows: int) -> Product:
    """Return the product from a layer's da to the layer before it, or to dz, whose sum may be cut."""
    inputs, outputs = kind.widths[index], kind.widths[index + 1]
    if index:
        tile = tile_for(rows, inputs, kind.real)
        return Product(layers.backward(layers.Backward(tile, kind.real, True)), tile, inputs, 1, outputs)
    return cut_in_parts(rows, inputs, outputs, kind.real)


def cut_in_parts(
    rows: int, columns: int, terms: int, real: Any, transposed: bool = False, stored: Any = None
) -> Product:
    """Return the product of matrices (rows, terms) and (terms, columns), or its transpose, whose sum may be cut."""
    tile, parts, piece = cut_product(rows, columns, terms, real)
    spec = layers.Backward(tile, real, False, transposed, stored)
    return Product(layers.backward(spec), tile, columns, parts, piece)


def weight_product(inputs: int, outputs: int, rows: int, real: Any, upstream: bool, symmetric: bool = False) -> Product:
    """Return the product of a layer's weight gradient."""
    tile, parts, piece = cut_weight_gradient(rows, inputs, outputs, real, symmetric)
    spec = layers.WeightGradient(tile, real, upstream, symmetric)
    return Product(layers.weight_gradient(spec), tile, inputs, parts, piece)
