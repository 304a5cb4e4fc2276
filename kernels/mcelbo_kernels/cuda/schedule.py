"""From a `Problem` in a device's memory to the kernels and back: the launches of a call, chunk by chunk.

A chunk of rows takes, with L layers,

    draw, L - 1 hidden, last                        z, h, and the errors of each tile's columns
    moments, or finish_errors                       of each datum, or of each row
    L backward, L weight_gradient                   da from layer to layer, dz; dW and dc in parts
    activation_gradient                             of a layer whose da comes in parts
    latent_gradient, L parameter_gradient           the parts added up

launches, those of gradients only where they are needed, and a further one for each sum over the rows of few data.
For one layer from few latents a single launch, see `thin`, takes the place of draw, last, backward and weight_gradient.
"""

from __future__ import annotations

from typing import Any

from mcelbo_kernels.cuda.layout import kind_of, up
from mcelbo_kernels.cuda.memory import Form, chunk_memory, places_of_results, waiting_memory
from mcelbo_kernels.cuda.noise import blocks_for, in_blocks, source_of
from mcelbo_kernels.cuda.plan import ThinPass, plan_of
from mcelbo_kernels.cuda.rows import DatumSum
from mcelbo_kernels.cuda.seam import Kernel
from mcelbo_kernels.cuda.sums import THREADS, groups_for, parameter_gradient
from mcelbo_kernels.cuda.target import Target
from mcelbo_kernels.problem import Gradients, Moments, Need, Problem, check_upstream


def errors(problem: Problem, seed: Any, target: Target) -> Any:
    """Return T[b, i] = sum_j w[b, j] t(y[b, i, j], x[b, j]), t the cell, in the dtype of the problem.

    Parameters
    ----------
    problem : Problem
        Whose arrays lie in the device's memory, row after row; its draw's seed does not count. Without data nothing is
        launched, and results hold whatever the memory held.
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
        self,
        problem: Problem,
        need: Need,
        seed: Any,
        target: Target,
        *,
        upstream: Any = None,
        errors: Any = None,
        form: Form | None = None,
    ) -> None:
        self.problem, self.target, self.upstream, self.errors, self.form = problem, target, upstream, errors, form
        self.kind = kind_of(problem, need, upstream is not None, errors is not None, form is not None)
        self.plan = plan_of(self.kind)
        self.chunk, self.waiting = chunk_memory(self.plan, target), waiting_memory(self.plan, target)
        self.moments, self.gradients = places_of_results(self.plan, target)
        self.noise = source_of(problem.draw, self.kind.widths[0], seed, target)
        # all samples of a mean weigh the same
        self.scale = 1.0 / self.kind.samples if upstream is None else 1.0

    def run(self) -> None:
        """Launch everything."""
        for begin in range(0, self.kind.rows, self.plan.length):
            count = min(self.plan.length, self.kind.rows - begin)
            if self.plan.thin is None:
                self.forward(begin, count)
            else:
                self.thin(self.plan.thin, begin, count)
            self.add_errors(begin, count)
            if self.kind.need.gradient:
                self.backward(count)
                self.add_latents(begin, count)
                self.add_pixels(begin, count)
                for index in range(len(self.problem.layers)):
                    self.add_weights(index, begin, count)

    def launch(self, kernel: Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
        """Launch a kernel unless there is nothing to do."""
        if all(blocks):
            self.target.launch(kernel, blocks, *arguments)

    def forward(self, begin: int, count: int) -> None:
        """From the noise to the last layer's errors and da."""
        launch, problem, chunk, n = self.launch, self.problem, self.chunk, self.kind.samples
        blocks, whole = (blocks_for(count, self.kind.widths[0]), 1), int(in_blocks(problem.draw, begin))
        launch(self.plan.draw, blocks, problem.mu, problem.logvar, self.noise, begin, count, whole, chunk.inputs[0])
        centre = None if self.form is None else self.form.centre
        for index, product in enumerate(self.plan.forward[:-1]):
            left = chunk.inputs[index + 1], chunk.slopes[index]
            place = centre, n, begin, count, *self.sides(index)
            blocks = product.blocks(count)
            launch(product.kernel, blocks, chunk.inputs[index], *self.layer(index), *left, *place)
        self.last(begin, count)

    def last(self, begin: int, count: int) -> None:
        """From the last hidden layer to the sums of errors, and to da, or past a quadratic form."""
        chunk, form, product = self.chunk, self.form, self.plan.forward[-1]
        place = self.kind.samples, begin, count, *self.sides(-1)
        given: tuple[Any, ...]
        if form is None:
            given = *self.layer(-1), *self.pixels(), chunk.sums, chunk.slopes[-1], chunk.dx, chunk.dw
        else:
            given = form.g, form.a, chunk.sums, chunk.slopes[-2] if len(chunk.slopes) > 1 else chunk.dz
        self.launch(product.kernel, product.blocks(count), chunk.inputs[-1], *given, *place)

    def thin(self, thin: ThinPass, begin: int, count: int) -> None:
        """From the noise to the errors, dz and the parameters' gradients in one launch."""
        problem, chunk, pixels = self.problem, self.chunk, self.kind.widths[-1]
        blocks = up(count, thin.piece), thin.tiles
        given = problem.mu, problem.logvar, self.noise, *self.layer(0), *self.pixels(), self.upstream
        self.launch(thin.kernel, blocks, *given, chunk.sums, chunk.dz, chunk.parts, begin, count, pixels, thin.piece)

    def pixels(self) -> tuple[Any, ...]:
        """Return the data, their weights, and how far apart the weights of two data lie."""
        weight = self.problem.weight
        return self.problem.x, weight, self.kind.widths[-1] if self.kind.weights > 1 else 0

    def layer(self, index: int) -> tuple[Any, ...]:
        """Return a layer's weight, bias and parameter."""
        layer = self.problem.layers[index]
        return layer.weight, layer.bias, layer.activation.parameter

    def sides(self, index: int) -> tuple[int, int]:
        """Return a layer's inputs and outputs."""
        last = index % len(self.problem.layers)
        return self.kind.widths[last], self.kind.widths[last + 1]

    def add_errors(self, begin: int, count: int) -> None:
        """Add up the errors of each row, or the moments of each datum."""
        sums, columns = self.chunk.sums, self.plan.columns
        if self.errors is not None:
            self.launch(self.plan.errors, (up(count, THREADS), 1), sums, columns, count, begin, self.errors)
        elif self.kind.summed:
            given = sums, columns, None if self.form is None else self.form.fit
            results = self.moments.mean, self.moments.squares
            self.add_rows(self.plan.moments, begin, count, given, self.waiting.moments, results)

    def backward(self, count: int) -> None:
        """From the last layer's da to those before it, and to dz."""
        slopes = self.chunk.slopes
        for index in reversed(range(len(self.problem.layers))):
            product = self.plan.backward[index]
            if product is None:
                continue
            cut = index > 0 and product.parts > 1
            result = self.chunk.dh if cut else slopes[index - 1] if index else self.chunk.dz
            given = slopes[index], self.problem.layers[index].weight, result
            self.launch(product.kernel, product.blocks(count), *given, count, *self.sides(index), product.piece)
            if cut:
                size = count * self.kind.widths[index]
                parts = self.chunk.dh, product.parts, size, slopes[index - 1]
                self.launch(self.plan.slopes, (up(size, THREADS), 1), *parts)

    def add_latents(self, begin: int, count: int) -> None:
        """Add up the posterior's gradients over the samples of each datum."""
        parts, latent = self.plan.parts_of_dz, self.kind.widths[0]
        if parts and latent and self.kind.lowest < 0:
            given = self.chunk.dz, parts, self.upstream, self.problem.logvar, self.noise, self.scale
            results = self.gradients.mu, self.gradients.logvar
            offset = self.problem.draw.sample_offset
            self.add_rows(self.plan.latents, begin, count, given, self.waiting.latents, results, offset)

    def add_pixels(self, begin: int, count: int) -> None:
        """Add up the gradients of the data and of the pixel weights over the samples."""
        plan, chunk, waiting, results = self.plan, self.chunk, self.waiting, self.gradients
        for item, rows, sums, result in (
            (plan.x, chunk.dx, waiting.x, results.x),
            (plan.weight, chunk.dw, waiting.weight, results.weight),
        ):
            if rows is not None:
                self.add_rows(item, begin, count, (rows, self.upstream, self.scale), sums, result)

    def add_rows(
        self, item: DatumSum, begin: int, count: int, given: Any, waiting: Any, results: Any, offset: int = 0
    ) -> None:
        """Add up the rows of each datum."""
        number = data(begin, count, item.n)
        rows = begin, count, item.n, item.columns, begin // item.n, number, item.parts, item.piece, offset
        for kernel, blocks in zip(item.kernels, item.blocks(number), strict=True):
            self.launch(kernel, blocks, given, rows, self.chunk.left, waiting, results)

    def add_weights(self, index: int, begin: int, count: int) -> None:
        """Add up the parts of the gradients of a layer's weight and bias."""
        needed = self.kind.need.layers[index]
        if not any(needed):
            return
        inputs, outputs = self.sides(index)
        self.multiply_weights(index, begin, count)
        parts, groups = self.plan.row_parts(index, count), groups_for(self.plan.row_parts(index, self.plan.length))
        blocks = up(outputs * (inputs + 1), THREADS // groups), 1
        given = self.chunk.parts, parts, outputs * inputs, outputs
        starts_and_ends = int(begin == 0), int(begin + count == self.kind.rows)
        results = self.waiting.layers[index], *self.gradients.layers[index], *map(int, needed)
        kernel = parameter_gradient(self.kind.real, groups, self.kind.symmetric(index))
        self.launch(kernel, blocks, *given, *starts_and_ends, self.scale, *results)

    def multiply_weights(self, index: int, begin: int, count: int) -> None:
        """Multiply a layer's da by its input, in parts."""
        product, chunk = self.plan.weights[index], self.chunk
        if product is not None:
            inputs, outputs = self.sides(index)
            given = chunk.slopes[index], self.upstream, chunk.inputs[index], chunk.parts, begin, count
            blocks = product.blocks(outputs)[0], up(count, product.piece)
            self.launch(product.kernel, blocks, *given, inputs, outputs, product.piece)


def data(begin: int, count: int, n: int) -> int:
    """Return how many data, of n rows each, have rows in a chunk."""
    return (begin + count - 1) // n - begin // n + 1
