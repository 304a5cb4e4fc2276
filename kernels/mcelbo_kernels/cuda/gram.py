"""Sums of squared errors of a decoder whose last layer is affine with identity output, without touching its pixels.

Of y = h W^T + c, pixel weights w that the batch shares, and a centre h0 = h(mu) through which nothing flows:

    r0 = x - h0 W^T - c,   a = (w r0) W,   G = W^T (w W)
    T  = sum_j w r0^2 + t,   t = delta G delta^T - 2 delta a,   delta = h - h0        one pass, see `quadratic`
    v  = mean_i delta,   S = sum_b mean_i delta^T delta,   P = r0 - v W^T
    dx = 2 w P,   dc = -2 sum_b w P,   dW = -2 ((w P)^T h0 + (w r0)^T v) + 2 w (W S)
    dw = sum_b r0 (r0 - 2 v W^T) + sum_k (W S)_k W_k

The pass is that of `schedule` with another last product. Around it a call with L layers launches

    L - 1 hidden, backward, centre_errors           h0, h0 W^T in float64, r0
    backward, weight_gradient, parameter_gradient   a, added up by another if it has parts, and G
    2 backward, residuals                           v W^T and W S, w P and dx
    2 weight_gradient, layer_gradient               dW and dc
    pixel_weight_gradient                           dw

from the fourth line on only what is needed. h0 W^T is the one difference of large numbers, and the one product in
float64: B H m multiplications, one in 3 n of the grid's, by the kernel of any other product that reads what lies there
in the problem's precision.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from mcelbo_kernels.cuda import layers, quadratic
from mcelbo_kernels.cuda.layout import Kind, kind_of, tile_for, up
from mcelbo_kernels.cuda.memory import WIDE, Form
from mcelbo_kernels.cuda.plan import Product, cut_in_parts, weight_product
from mcelbo_kernels.cuda.schedule import Call
from mcelbo_kernels.cuda.seam import float64
from mcelbo_kernels.cuda.sums import LANES_OF_PIXELS, THREADS, groups_for, parameter_gradient
from mcelbo_kernels.cuda.target import Target
from mcelbo_kernels.problem import Gradients, Moments, Need, Problem


def value_and_gradients(problem: Problem, need: Need, seed: Any, target: Target) -> tuple[Moments, Gradients]:
    """Return what `schedule.value_and_gradients` returns, for problems that `alternatives.applies` holds for."""
    call = Gram(problem, need, target)
    form = call.before()
    samples = Call(problem, need_of_samples(need), seed, target, form=form)
    samples.run()
    return samples.moments, call.after(samples.gradients)


def need_of_samples(need: Need) -> Need:
    """Return which of v, S and the gradients before them to sum over the samples; v stands in the place of dx."""
    of_last = need.layers[-1]
    sums = need.x or need.weight or any(of_last)
    squares = of_last[0] or need.weight
    return Need(sums, False, need.mu, need.logvar, (*need.layers[:-1], (squares, False)))


class Products(NamedTuple):
    """The products of the batch's matrices."""

    hidden: tuple[Product, ...]  # of each layer before the last, at the posteriors' means
    centre: Product  # h0 W^T
    coupling: Product  # (w r0) W
    square: Product  # W^T (w W)
    change: Product  # v W^T
    squares: Product  # W S
    outer: Product  # (w P)^T h0, (w r0)^T v


@lru_cache(maxsize=256)
def products_of(kind: Kind) -> Products:
    """Choose the products' kernels for a kind of call."""
    (*_, width, pixels), batch, real = kind.widths, kind.batch, kind.real
    hidden = []
    for (inputs, outputs), activation in zip(pairwise(kind.widths[:-1]), kind.activations, strict=False):
        tile = tile_for(batch, outputs, inputs, real)
        hidden.append(Product(layers.hidden(layers.Hidden(tile, real, activation.name, False)), tile, outputs))
    return Products(
        tuple(hidden),
        cut_in_parts(batch, pixels, width, float64, transposed=True, stored=real),
        cut_in_parts(batch, width, pixels, real),
        weight_product(width, width, pixels, real, kind.weights > 0, symmetric=True),
        cut_in_parts(batch, pixels, width, real, transposed=True),
        cut_in_parts(pixels, width, width, real),
        weight_product(width, pixels, batch, real, False),
    )


class Gram:
    """A call's batch: what its matrices are before the pass over the samples, and what becomes of the pass's sums."""

    def __init__(self, problem: Problem, need: Need, target: Target) -> None:
        self.problem, self.need, self.target = problem, need, target
        self.kind = kind_of(problem, need, False, False)
        self.products = products_of(self.kind)
        self.batch, self.width, self.pixels = self.kind.batch, *self.kind.widths[-2:]
        self.weighted = problem.weight is not None
        self.centre = self.hidden_values()
        # w r0 and r0, which are one without weights
        self.scaled = self.empty(self.batch * self.pixels)
        self.r0 = self.empty(self.batch * self.pixels, need.weight)

    def empty(self, count: int, needed: bool = True) -> Any:
        """Return memory for so many numbers of the problem's precision, or None."""
        return self.target.empty(count, self.kind.dtype) if needed else None

    def hidden_values(self) -> Any:
        """Return the last hidden layer (B, H) of the posteriors' means."""
        h, target = self.problem.mu, self.target
        sides = pairwise(self.kind.widths)
        for layer, product, (inputs, outputs) in zip(self.problem.layers, self.products.hidden, sides, strict=False):
            result = self.empty(self.batch * outputs)
            given = h, layer.weight, layer.bias, layer.activation.parameter
            place = None, None, 1, 0, self.batch, inputs, outputs
            target.launch(product.kernel, product.blocks(self.batch), *given, result, *place)
            h = result
        return h

    def before(self) -> Form:
        """Return the quadratic form about the centre."""
        problem, products, width = self.problem, self.products, self.width
        weight, bias = problem.layers[-1].weight, problem.layers[-1].bias
        size, fit = self.batch * self.pixels, self.target.empty(self.batch, WIDE)
        product = self.multiply(products.centre, self.centre, weight, self.batch, width, WIDE)
        kernel = quadratic.centre_errors(self.kind.real, self.weighted, self.need.weight)
        given = product, products.centre.parts, problem.x, bias, problem.weight, size, self.pixels
        self.target.launch(kernel, (self.batch, 1), *given, self.scaled, self.r0, fit)
        a = self.multiply(products.coupling, self.scaled, weight, self.batch, self.pixels)
        g = self.multiply_transposed(products.square, weight, weight, self.pixels, width, factors=problem.weight)
        return Form(
            g=self.add(g, products.square.parts, width**2, beside=width),
            a=a if products.coupling.parts == 1 else self.add(a, products.coupling.parts, self.batch * width),
            centre=self.centre if products.hidden else None,
            fit=fit,
        )

    def after(self, found: Gradients) -> Gradients:
        """Return the gradients, of which the pass has found those before the last layer, v and S."""
        need, kind, v, squares = self.need, self.kind, found.x, found.layers[-1][0]
        of_last, size = need.layers[-1], self.batch * self.pixels
        before = found.layers[:-1]
        if v is None:
            return Gradients(None, None, found.mu, found.logvar, (*before, (None, None)))
        weight, products = self.problem.layers[-1].weight, self.products
        change = self.multiply(products.change, v, weight, self.batch, self.width)
        p, dx = self.empty(size, any(of_last)), self.empty(size, need.x)
        kernel = quadratic.residuals(quadratic.Residuals(kind.real, self.weighted, need.x, need.weight, any(of_last)))
        given = self.scaled, change, products.change.parts, self.problem.weight, size, self.pixels
        self.target.launch(kernel, (up(size, THREADS), 1), *given, p, dx)
        if squares is not None:
            squares = self.multiply(products.squares, weight, squares, self.pixels, self.width)
        d_weight = self.empty(self.pixels, need.weight)
        if need.weight:
            terms = self.r0, change, squares, products.squares.parts, weight, self.batch, self.pixels, self.width
            blocks = up(self.pixels, LANES_OF_PIXELS), 1
            self.target.launch(quadratic.pixel_weight_gradient(kind.real), blocks, *terms, d_weight)
        of_layer = self.layer_gradient(p, v, squares) if any(of_last) else (None, None)
        return Gradients(dx, d_weight, found.mu, found.logvar, (*before, of_layer))

    def layer_gradient(self, p: Any, v: Any, squares: Any) -> tuple[Any, Any]:
        """Return dW and dc from w P, v and the parts of W S."""
        products, (by_weight, by_bias) = self.products, self.need.layers[-1]
        size, second = self.pixels * self.width, None
        first = self.multiply_transposed(products.outer, p, self.centre, self.batch, self.pixels)
        if by_weight:
            second = self.multiply_transposed(products.outer, self.scaled, v, self.batch, self.pixels)
        dw, dc = self.empty(size, by_weight), self.empty(self.pixels, by_bias)
        parts = first, second, products.outer.parts, squares, products.squares.parts
        given = self.problem.weight, self.pixels, self.width, dw, dc, int(by_weight), int(by_bias)
        kernel = quadratic.layer_gradient(self.kind.real, self.weighted)
        self.target.launch(kernel, (up(size + self.pixels, THREADS), 1), *parts, *given)
        return dw, dc

    def multiply(self, product: Product, left: Any, right: Any, rows: int, terms: int, dtype: Any = None) -> Any:
        """Return the parts of a product of left (rows, terms) and right: (parts, rows, columns)."""
        result = self.target.empty(product.parts * rows * product.columns, dtype or self.kind.dtype)
        place = rows, product.columns, terms, product.piece
        self.target.launch(product.kernel, product.blocks(rows), left, right, result, *place)
        return result

    def multiply_transposed(
        self, product: Product, left: Any, right: Any, terms: int, rows: int, factors: Any = None
    ) -> Any:
        """Return the parts of left^T (rows, terms) times right, and left's sums: (parts, rows columns + rows)."""
        columns = product.columns
        result = self.empty(product.parts * rows * (columns + 1))
        place = 0, terms, columns, rows, product.piece
        self.target.launch(product.kernel, product.blocks(rows), left, factors, right, result, *place)
        return result

    def add(self, sums: Any, parts: int, size: int, beside: int = 0) -> Any:
        """Return the sum of parts of so many numbers: of a symmetric matrix if there are others beside, left out."""
        result, place = self.empty(size), (parts, size, beside, 1, 1, 1.0, None)
        groups = groups_for(parts)
        kernel = parameter_gradient(self.kind.real, groups, beside > 0)
        self.target.launch(kernel, (up(size + beside, THREADS // groups), 1), sums, *place, result, None, 1, 0)
        return result
