"""From a `Problem` in a device's memory to the kernels and back: the launches of a call, chunk by chunk.

A chunk of rows takes, with L layers,

    draw, L - 1 hidden, last                        z, h and the errors' sums by tiles of columns
    moments, or finish_errors                       of each datum, or of each row
    L backward, L weight_gradient                   da from layer to layer, dz; dW and dc in parts
    latent_gradient, L parameter_gradient           the parts added up

launches, those of gradients only where they are needed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from mcelbo_kernels.cuda import layers, samples, sums
from mcelbo_kernels.cuda.layout import capacity, cut_outputs, cut_rows, tile_for, tiles, up
from mcelbo_kernels.cuda.noise import INJECTED
from mcelbo_kernels.cuda.seam import float32, float64
from mcelbo_kernels.cuda.target import Target
from mcelbo_kernels.numerics.sobol import latents_first, scipy_directions
from mcelbo_kernels.problem import Gradients, Moments, Need, Problem, check_upstream

DRAWN_BY_A_THREAD = 4  # rows


def errors(problem: Problem, seed: Any, target: Target) -> Any:
    """Return T[b, i] = sum_j w[b, j] t(y[b, i, j], x[b, j]), t the cell, in the dtype of the problem.

    Parameters
    ----------
    problem : Problem
        Whose arrays lie in the device's memory, row after row; its draw's seed does not count.
    seed : array of int64, shape (1,)
        Read by the kernels.
    target : Target

    Returns
    -------
    array, flat, of B n numbers
    """
    result = target.empty(len(problem.x) * problem.draw.num_samples, problem.x.dtype)
    Call(problem, Need.nothing(problem), seed, target, errors=result).run()
    return result


def value_and_gradients(problem: Problem, need: Need, seed: Any, target: Target) -> tuple[Moments, Gradients]:
    """Return the moments of T and the gradients of sum_b mean_i T[b, i], flat arrays in the device's memory.

    Parameters
    ----------
    problem, seed, target
        As for `errors`.
    need : Need
        Which gradients to return; the others are None.

    Returns
    -------
    Moments, Gradients
    """
    call = Call(problem, need, seed, target)
    call.run()
    return call.moments, call.gradients


def gradients(problem: Problem, upstream: Any, need: Need, seed: Any, target: Target) -> Gradients:
    """Return the vector-Jacobian product of T with `upstream` (B, n); the noise is drawn again.

    Parameters
    ----------
    problem, seed, target
        As for `errors`.
    upstream : array, shape (B, n)
    need : Need

    Returns
    -------
    Gradients

    Raises
    ------
    ValueError
        If `upstream` has another shape.
    """
    check_upstream(upstream.shape, problem)
    call = Call(problem, need, seed, target, upstream=upstream)
    call.run()
    return call.gradients


class Buffers(NamedTuple):
    """A chunk's memory; what nobody needs is None."""

    inputs: list[Any]  # of each layer, (rows, I): z, then h
    slopes: list[Any]  # of each layer, (rows, O): the activation's slope, then da
    sums: Any  # (tiles, rows) of the errors
    dz: Any  # (parts, rows, d)
    dx: Any  # (rows, m)
    dw: Any  # (rows, m)


class Call:
    """A call: what it computes with, and where the results lie."""

    def __init__(
        self,
        problem: Problem,
        need: Need,
        seed: Any,
        target: Target,
        *,
        upstream: Any = None,
        errors: Any = None,
    ) -> None:
        self.problem, self.need, self.target = problem, need, target
        self.upstream, self.errors = upstream, errors
        self.real = float32 if problem.x.dtype == np.float32 else float64
        self.batch, self.pixels = problem.x.shape
        self.n = problem.draw.num_samples
        self.scale = 1.0 if upstream is not None else 1.0 / self.n
        self.widths = [problem.mu.shape[1], *(layer.weight.shape[0] for layer in problem.layers)]
        self.rows = self.batch * self.n
        self.length = min(capacity(problem, need), max(1, self.rows))
        self.noise = self._noise(seed)
        self.lowest = lowest(need)
        self.results()
        self.make_buffers()

    def _noise(self, seed: Any) -> tuple[Any, ...]:
        """Return the noise's source, and set the sampler."""
        draw, latent = self.problem.draw, self.widths[0]
        self.sampler, table = draw.sampler, seed
        if draw.eps is not None:
            self.sampler, table = INJECTED, draw.eps
        elif draw.sampler == "sobol":
            directions = scipy_directions(latent) if draw.directions is None else draw.directions[:latent]
            table = self.target.upload(latents_first(directions))
        return seed, table, self.n, latent, draw.datum_offset, draw.sample_offset

    def results(self) -> None:
        """Make the places of the results, and of what waits between chunks."""
        problem, need, real, wide = self.problem, self.need, self.problem.x.dtype, np.dtype(np.float64)
        empty, (batch, latent) = self.target.empty, problem.mu.shape

        def place(needed: bool, like: Any) -> Any:
            return empty(int(np.prod(like.shape)), real) if needed else None

        self.moments = Moments(empty(batch, wide), empty(batch, wide))
        self.gradients = Gradients(
            x=place(need.x, problem.x),
            weight=place(need.weight, problem.weight),
            mu=place(need.mu or need.logvar, problem.mu),
            logvar=place(need.mu or need.logvar, problem.logvar),
            layers=tuple(
                (place(weight, layer.weight), place(bias, layer.bias))
                for layer, (weight, bias) in zip(problem.layers, need.layers, strict=True)
            ),
        )
        self.waiting_moments = empty(3 * batch, wide)
        self.waiting_latents = empty(2 * batch * latent, wide)
        self.waiting_x = empty(batch * self.pixels, wide) if need.x else None
        self.waiting_weight = (
            empty(int(np.prod(problem.weight.shape)), wide) if problem.weight is not None and need.weight else None
        )
        self.waiting_layers = [
            empty(layer.weight.size + layer.bias.size, wide) if any(needed) else None
            for layer, needed in zip(problem.layers, need.layers, strict=True)
        ]

    def make_buffers(self) -> None:
        """Choose the tiles and make a chunk's memory."""
        need, real, rows, widths = self.need, self.problem.x.dtype, self.length, self.widths
        empty, gradient = self.target.empty, self.need.gradient
        self.tiles = [tile_for(rows, outputs, self.real) for outputs in widths[1:]]
        self.of_dz = cut_outputs(rows, widths[0], widths[1], self.real)
        self.of_weights = [cut_rows(rows, inputs, outputs, self.real) for inputs, outputs in pairwise(widths)]
        parts = max(
            (
                part.parts * outputs * (inputs + 1)
                for part, (inputs, outputs) in zip(self.of_weights, pairwise(widths), strict=True)
            ),
            default=0,
        )
        self.parts = empty(parts, real) if any(map(any, need.layers)) else None
        self.buffers = Buffers(
            inputs=[empty(rows * width, real) for width in widths[:-1]],
            slopes=[empty(rows * width, real) if gradient else None for width in widths[1:]],
            sums=empty(rows * up(widths[-1], self.tiles[-1].width), real),
            dz=empty(self.of_dz.parts * rows * widths[0], real) if self.lowest < 0 else None,
            dx=empty(rows * widths[-1], real) if need.x else None,
            dw=empty(rows * widths[-1], real) if need.weight else None,
        )

    def run(self) -> None:
        """Launch everything."""
        for begin in range(0, self.rows, self.length):
            count = min(self.length, self.rows - begin)
            self.forward(begin, count)
            self.collect_errors(begin, count)
            if self.need.gradient:
                self.backward(count)
                self.collect_gradients(begin, count)

    def forward(self, begin: int, count: int) -> None:
        """From the noise to the last layer's errors and da."""
        problem, buffers, launch, real = self.problem, self.buffers, self.target.launch, self.real
        gradient, need, latent = self.need.gradient, self.need, self.widths[0]
        quads = self.n % 4 == 0 and begin % 4 == 0 and problem.draw.sample_offset % 4 == 0
        blocks = up(up(count, DRAWN_BY_A_THREAD) * latent, samples.THREADS)
        z = buffers.inputs[0]
        if latent:
            launch(
                samples.draw(self.sampler, real),
                (blocks, 1),
                problem.mu,
                problem.logvar,
                self.noise,
                begin,
                count,
                int(quads),
                z,
            )
        for index, layer in enumerate(problem.layers[:-1]):
            tile, (outputs, inputs) = self.tiles[index], layer.weight.shape
            launch(
                layers.hidden(layers.Hidden(tile, real, layer.activation.name, gradient)),
                (tiles(tile, count, outputs), 1),
                buffers.inputs[index],
                layer.weight,
                layer.bias,
                layer.activation.parameter,
                buffers.inputs[index + 1],
                buffers.slopes[index],
                count,
                inputs,
                outputs,
            )
        layer, tile, weight = problem.layers[-1], self.tiles[-1], problem.weight
        outputs, inputs = layer.weight.shape
        spec = layers.Last(
            tile, real, layer.activation.name, problem.cell, gradient, weight is not None, need.x, need.weight
        )
        launch(
            layers.last(spec),
            (tiles(tile, count, outputs), 1),
            buffers.inputs[-1],
            layer.weight,
            layer.bias,
            layer.activation.parameter,
            problem.x,
            weight,
            0 if weight is None or len(weight) == 1 else outputs,
            buffers.sums,
            buffers.slopes[-1],
            buffers.dx,
            buffers.dw,
            self.n,
            begin,
            count,
            inputs,
            outputs,
        )

    def collect_errors(self, begin: int, count: int) -> None:
        """Add up the errors of each row, or of each datum."""
        launch, buffers, columns = self.target.launch, self.buffers, up(self.pixels, self.tiles[-1].width)
        if self.errors is not None:
            blocks = (up(count, sums.THREADS), 1)
            launch(sums.finish_errors(self.real), blocks, buffers.sums, columns, count, begin, self.errors)
        elif self.upstream is None:
            launch(
                sums.moments(self.real),
                (1, self.data(begin, count)),
                buffers.sums,
                columns,
                begin,
                count,
                self.n,
                self.waiting_moments,
                self.moments.mean,
                self.moments.squares,
            )

    def data(self, begin: int, count: int) -> int:
        """Return how many data have rows in a chunk."""
        return (begin + count - 1) // self.n - begin // self.n + 1

    def backward(self, count: int) -> None:
        """From the last layer's da to those before it, and to dz."""
        launch, real, buffers = self.target.launch, self.real, self.buffers
        for index in range(len(self.problem.layers) - 1, max(self.lowest, 0), -1):
            outputs, inputs = self.problem.layers[index].weight.shape
            tile = tile_for(count, inputs, real)
            launch(
                layers.backward(layers.Backward(tile, real, True)),
                (tiles(tile, count, inputs), 1),
                buffers.slopes[index],
                self.problem.layers[index].weight,
                buffers.slopes[index - 1],
                count,
                inputs,
                outputs,
                outputs,
            )
        if self.lowest < 0:
            outputs, inputs = self.problem.layers[0].weight.shape
            tile, parts, piece = self.of_dz
            launch(
                layers.backward(layers.Backward(tile, real, False)),
                (tiles(tile, count, inputs), parts),
                buffers.slopes[0],
                self.problem.layers[0].weight,
                buffers.dz,
                count,
                inputs,
                outputs,
                piece,
            )

    def collect_gradients(self, begin: int, count: int) -> None:
        """Add up what the samples of a datum, or all samples, give to a gradient."""
        for index, needed in enumerate(self.need.layers):
            if any(needed):
                self.collect_layer(index, begin, count, *needed)
        launch, real, buffers, problem = self.target.launch, self.real, self.buffers, self.problem
        data, weighted, latent = self.data(begin, count), self.upstream is not None, self.widths[0]
        if self.lowest < 0 and latent:
            lanes = sums.lanes_for(latent)
            launch(
                sums.latent_gradient(self.sampler, real, lanes, weighted),
                (up(latent, lanes), data),
                buffers.dz,
                self.of_dz.parts,
                self.upstream,
                problem.logvar,
                self.noise,
                begin,
                count,
                self.scale,
                self.waiting_latents,
                self.gradients.mu,
                self.gradients.logvar,
            )
        blocks = up(self.pixels, 32)
        if self.need.x:
            self.collect_pixels(buffers.dx, begin, count, self.n, blocks, self.waiting_x, self.gradients.x)
        if problem.weight is not None and self.need.weight:
            n = self.n if len(problem.weight) == self.batch else self.rows
            self.collect_pixels(buffers.dw, begin, count, n, blocks, self.waiting_weight, self.gradients.weight)

    def collect_pixels(self, rows: Any, begin: int, count: int, n: int, blocks: int, waiting: Any, result: Any) -> None:
        """Add up the rows of each n."""
        data = (begin + count - 1) // n - begin // n + 1
        self.target.launch(
            sums.pixel_gradient(self.real, self.upstream is not None),
            (blocks, data),
            rows,
            self.upstream,
            begin,
            count,
            n,
            self.pixels,
            self.scale,
            waiting,
            result,
        )

    def collect_layer(self, index: int, begin: int, count: int, by_weight: bool, by_bias: bool) -> None:
        """Multiply a layer's da by its input, in parts, and add these up."""
        launch, real, buffers = self.target.launch, self.real, self.buffers
        outputs, inputs = self.problem.layers[index].weight.shape
        tile, _, piece = self.of_weights[index]
        parts = up(count, piece)
        launch(
            layers.weight_gradient(layers.WeightGradient(tile, real, self.upstream is not None)),
            (tiles(tile, outputs, inputs), parts),
            buffers.slopes[index],
            self.upstream,
            buffers.inputs[index],
            self.parts,
            begin,
            count,
            inputs,
            outputs,
            piece,
        )
        launch(
            sums.parameter_gradient(real),
            (up(outputs * (inputs + 1), sums.THREADS), 1),
            self.parts,
            parts,
            outputs * inputs,
            outputs,
            int(begin == 0),
            int(begin + count == self.rows),
            self.scale,
            self.waiting_layers[index],
            *self.gradients.layers[index],
            int(by_weight),
            int(by_bias),
        )


def lowest(need: Need) -> int:
    """Return the first layer whose da is needed: -1 where dz is."""
    if need.mu or need.logvar:
        return -1
    return next((index for index, needed in enumerate(need.layers) if any(needed)), len(need.layers) - 1)
