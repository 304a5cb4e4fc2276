"""From a `Problem` in a device's memory to the kernels and back: the launches of a call, chunk by chunk.

A chunk of rows takes, with L layers,

    draw, L - 1 hidden, last                        z, h, and the errors of each tile's columns
    moments, or finish_errors                       of each datum, or of each row
    L backward, L weight_gradient                   da from layer to layer, dz; dW and dc in parts
    latent_gradient, L parameter_gradient           the parts added up

launches, those of gradients only where they are needed.
"""

from __future__ import annotations

from typing import Any

from mcelbo_kernels.cuda.layout import kind_of, up
from mcelbo_kernels.cuda.memory import chunk_memory, places_of_results, waiting_memory
from mcelbo_kernels.cuda.noise import blocks_for, in_blocks, source_of
from mcelbo_kernels.cuda.plan import plan_of
from mcelbo_kernels.cuda.sums import LANES_OF_PIXELS, THREADS, lanes_for
from mcelbo_kernels.cuda.target import Target
from mcelbo_kernels.problem import Gradients, Moments, Need, Problem, check_upstream


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
        Which gradients to return; the others are None, but for mu and logvar, which come together.

    Returns
    -------
    Moments, Gradients
    """
    call = Call(problem, need, seed, target)
    call.run()
    return call.moments, call.gradients


def gradients(problem: Problem, upstream: Any, need: Need, seed: Any, target: Target) -> Gradients:
    """Return the vector-Jacobian product of T with `upstream`; the noise is drawn again.

    Parameters
    ----------
    problem, need, seed, target
        As for `value_and_gradients`.
    upstream : array, shape (B, n)

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


class Call:
    """A call: its plan, its memory, and what it computes with."""

    def __init__(
        self, problem: Problem, need: Need, seed: Any, target: Target, *, upstream: Any = None, errors: Any = None
    ) -> None:
        self.problem, self.target, self.upstream, self.errors = problem, target, upstream, errors
        self.kind = kind_of(problem, need, upstream is not None, errors is not None)
        self.plan = plan_of(self.kind)
        self.chunk, self.waiting = chunk_memory(self.plan, target), waiting_memory(self.plan, target)
        self.moments, self.gradients = places_of_results(problem, self.plan, target)
        self.noise = source_of(problem.draw, self.kind.widths[0], seed, target)
        # all samples of a mean weigh the same
        self.scale = 1.0 / self.kind.samples if upstream is None else 1.0

    def run(self) -> None:
        """Launch everything."""
        for begin in range(0, self.kind.rows, self.plan.length):
            count = min(self.plan.length, self.kind.rows - begin)
            self.forward(begin, count)
            self.add_errors(begin, count)
            if self.kind.need.gradient:
                self.backward(count)
                self.add_latents(begin, count)
                self.add_pixels(begin, count)
                for index in range(len(self.problem.layers)):
                    self.add_weights(index, begin, count)

    def forward(self, begin: int, count: int) -> None:
        """From the noise to the last layer's errors and da."""
        launch, problem, chunk, n = self.target.launch, self.problem, self.chunk, self.kind.samples
        blocks, whole = blocks_for(count, self.kind.widths[0]), int(in_blocks(problem.draw, begin))
        if blocks:
            z = chunk.inputs[0]
            launch(self.plan.draw, (blocks, 1), problem.mu, problem.logvar, self.noise, begin, count, whole, z)
        *hidden, last = self.plan.forward
        for index, product in enumerate(hidden):
            ends = chunk.inputs[index + 1], chunk.slopes[index], count
            launch(
                product.kernel,
                product.blocks(count),
                chunk.inputs[index],
                *self.layer(index),
                *ends,
                *self.sides(index),
            )
        weight = problem.weight
        pixels = (problem.x, weight, self.kind.widths[-1] if weight is not None and len(weight) > 1 else 0)
        left = chunk.sums, chunk.slopes[-1], chunk.dx, chunk.dw
        place = n, begin, count, *self.sides(-1)
        launch(last.kernel, last.blocks(count), chunk.inputs[-1], *self.layer(-1), *pixels, *left, *place)

    def layer(self, index: int) -> tuple[Any, ...]:
        """Return a layer's weight, bias and parameter."""
        layer = self.problem.layers[index]
        return layer.weight, layer.bias, layer.activation.parameter

    def sides(self, index: int) -> tuple[int, int]:
        """Return a layer's inputs and outputs."""
        outputs, inputs = self.problem.layers[index].weight.shape
        return inputs, outputs

    def add_errors(self, begin: int, count: int) -> None:
        """Add up the errors of each row, or the moments of each datum."""
        launch, kernel, sums, columns = self.target.launch, self.plan.errors, self.chunk.sums, self.plan.columns
        if self.errors is not None:
            launch(kernel, (up(count, THREADS), 1), sums, columns, count, begin, self.errors)
        elif self.upstream is None:
            n = self.kind.samples
            results = self.waiting.moments, self.moments.mean, self.moments.squares
            launch(kernel, (data(begin, count, n), 1), sums, columns, begin, count, n, *results)

    def backward(self, count: int) -> None:
        """From the last layer's da to those before it, and to dz."""
        slopes = self.chunk.slopes
        for index in reversed(range(len(self.problem.layers))):
            product = self.plan.backward[index]
            if product is not None:
                result = slopes[index - 1] if index else self.chunk.dz
                given = slopes[index], self.problem.layers[index].weight, result
                self.target.launch(
                    product.kernel, product.blocks(count), *given, count, *self.sides(index), product.piece
                )

    def add_latents(self, begin: int, count: int) -> None:
        """Add up the posterior's gradients over the samples of each datum."""
        product, latent = self.plan.backward[0], self.kind.widths[0]
        if product is not None and latent:
            blocks = up(latent, lanes_for(latent)) * data(begin, count, self.kind.samples), 1
            given = self.chunk.dz, product.parts, self.upstream, self.problem.logvar, self.noise
            results = self.waiting.latents, self.gradients.mu, self.gradients.logvar
            self.target.launch(self.plan.add_latents, blocks, *given, begin, count, self.scale, *results)

    def add_pixels(self, begin: int, count: int) -> None:
        """Add up the gradients of the data and of the pixel weights over the samples."""
        kind, pixels = self.kind, self.kind.widths[-1]
        of_weight = kind.rows if kind.weights == 1 else kind.samples
        for rows, n, waiting, result in (
            (self.chunk.dx, kind.samples, self.waiting.x, self.gradients.x),
            (self.chunk.dw, of_weight, self.waiting.weight, self.gradients.weight),
        ):
            if rows is not None:
                blocks = up(pixels, LANES_OF_PIXELS) * data(begin, count, n), 1
                given = rows, self.upstream, begin, count, n, pixels, self.scale
                self.target.launch(self.plan.add_pixels, blocks, *given, waiting, result)

    def add_weights(self, index: int, begin: int, count: int) -> None:
        """Multiply a layer's da by its input, in parts, and add these up."""
        product, (inputs, outputs) = self.plan.weights[index], self.sides(index)
        if product is None:
            return
        parts, size, of_parts = up(count, product.piece), outputs * inputs, self.chunk.parts
        given = self.chunk.slopes[index], self.upstream, self.chunk.inputs[index], of_parts, begin, count
        tiles, _ = product.blocks(outputs)
        self.target.launch(product.kernel, (tiles, parts), *given, inputs, outputs, product.piece)
        starts_and_ends = int(begin == 0), int(begin + count == self.kind.rows)
        needed = [int(result is not None) for result in self.gradients.layers[index]]
        results = self.waiting.layers[index], *self.gradients.layers[index], *needed
        blocks = up(size + outputs, THREADS), 1
        self.target.launch(
            self.plan.add_parts, blocks, of_parts, parts, size, outputs, *starts_and_ends, self.scale, *results
        )


def data(begin: int, count: int, n: int) -> int:
    """Return how many data, of n rows each, have rows in a chunk."""
    return (begin + count - 1) // n - begin // n + 1
