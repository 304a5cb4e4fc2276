"""From a `Problem` to the fused pass and back: the calls, who takes part in them, gradients like their inputs."""

from __future__ import annotations

import numpy as np

from mcelbo_kernels.cpu import buffers
from mcelbo_kernels.cpu.buffers import Inputs, Totals, address, contiguous
from mcelbo_kernels.cpu.crew import carry_out
from mcelbo_kernels.cpu.grid import work
from mcelbo_kernels.cpu.layout import kind_of
from mcelbo_kernels.cpu.memory import leave, take
from mcelbo_kernels.cpu.plan import Plan, inputs_of, make_plan, start_sums
from mcelbo_kernels.cpu.samples import finish_moments
from mcelbo_kernels.cpu.shape import host_shape
from mcelbo_kernels.problem import Array, Gradients, Moments, Need, Problem, check_upstream

# A call into the kernel returns after so many chunks, so that Ctrl-C is heard.
CHUNKS_OF_A_CALL = 64
# Below so many multiplications a helper is not worth waking.
WORTH_A_HELPER = 1 << 21

LayerGradients = tuple[tuple[Array | None, Array | None], ...]

# Infinities are results here, and NumPy would warn of them.
quietly = np.errstate(over="ignore", invalid="ignore")


@quietly
def errors(problem: Problem, threads: int = 1) -> Array:
    """Return T[b, i] = sum_j w[b, j] (x[b, j] - y[b, i, j])^2.

    Parameters
    ----------
    problem : Problem
    threads : int
        How many threads may take part; the result does not depend on it.

    Returns
    -------
    ndarray, shape (B, n), in the dtype of the problem

    Examples
    --------
    >>> from mcelbo_kernels.problem import Draw, Layer
    >>> layer = Layer(np.ones((2, 1)), np.zeros(2))
    >>> errors(Problem(np.array([[1.0, 2.0]]), np.zeros((1, 1)), np.zeros((1, 1)), (layer,), Draw(2, seed=7))).shape
    (1, 2)
    """
    result = np.empty((problem.x.shape[0], problem.draw.num_samples), problem.x.dtype)
    run(problem, Need.nothing(problem), threads, errors=result)
    return result


@quietly
def value_and_gradients(problem: Problem, need: Need, threads: int = 1) -> tuple[Moments, Gradients]:
    """Return the moments of T and the gradients of sum_b mean_i T[b, i], in one pass that stores nothing of size n.

    Parameters
    ----------
    problem, threads
        As for `errors`.
    need : Need
        Which gradients to return; the others are None.

    Returns
    -------
    Moments
        mean[b] = mean_i T[b, i] and squares[b] = sum_i (T[b, i] - mean[b])^2.
    Gradients
        In the shapes and the dtype of their inputs.

    Examples
    --------
    >>> from mcelbo_kernels.problem import Draw, Layer
    >>> layer = Layer(np.ones((2, 1)), np.zeros(2))
    >>> problem = Problem(np.array([[1.0, 2.0]]), np.zeros((1, 1)), np.zeros((1, 1)), (layer,), Draw(2, seed=7))
    >>> moments, gradients = value_and_gradients(problem, Need.everything(problem))
    >>> moments.mean.shape, gradients.mu.shape
    ((1,), (1, 1))
    """
    return run(problem, need, threads)


def moments(totals: Totals, n: int) -> Moments:
    """Return the moments of n errors a datum from their sums about a shift."""
    mean, squares = (np.empty(len(totals.moments)) for _ in range(2))
    finish_moments(totals.moments, n, mean, squares)
    return Moments(mean, squares)


@quietly
def gradients(problem: Problem, upstream: Array, need: Need, threads: int = 1) -> Gradients:
    """Return the vector-Jacobian product of T with `upstream`; the noise is drawn again.

    Parameters
    ----------
    problem, need, threads
        As for `value_and_gradients`.
    upstream : ndarray, shape (B, n)

    Returns
    -------
    Gradients

    Raises
    ------
    ValueError
        If `upstream` has another shape.
    """
    check_upstream(upstream.shape, problem)
    return run(problem, need, threads, upstream=upstream)[1]


def run(
    problem: Problem,
    need: Need,
    threads: int,
    *,
    upstream: Array | None = None,
    errors: Array | None = None,
    likelihood: str | None = None,
    centre: Array | None = None,
) -> tuple[Moments, Gradients]:
    """Run the pass; samples weigh `upstream` (B, n), 1/n where None, and leave their T in `errors` (B, n) if given."""
    rows, parameters = problem.x.shape[0] * problem.draw.num_samples, sum(layer.weight.size for layer in problem.layers)
    threads = threads if rows * parameters >= WORTH_A_HELPER else 1
    tile = host_shape(problem.x.dtype.name)
    kind = kind_of(problem, need, tile, likelihood, upstream, centre, threads)
    plan = take(kind, lambda: make_plan(kind))
    found = layer_gradients(problem, need)
    kept = place_layers(problem, found, plan.layout.layers)
    inputs = inputs_of(problem, upstream, centre, plan)
    totals = plan.totals if errors is None else plan.totals._replace(errors=errors.reshape(-1))
    start_sums(totals)
    stride = CHUNKS_OF_A_CALL * plan.layout.capacity
    for begin in range(0, rows, stride):
        share(plan, inputs, begin, min(begin + stride, rows), totals)
    del kept
    results = moments(totals, inputs.num_samples), collect(problem, need, totals, found, inputs.scale)
    # not where a call was interrupted: its helpers may still be at work
    leave(kind, plan)
    return results


def place_layers(problem: Problem, gradients: LayerGradients, table: Array) -> list[Array]:
    """Write where the layers and their gradients lie to `table`; return what must be kept for as long."""
    kept: list[Array] = []
    for row, layer, (dw, dc) in zip(table, problem.layers, gradients, strict=True):
        weight, bias = contiguous(layer.weight), contiguous(layer.bias)
        row[buffers.WEIGHT], row[buffers.BIAS] = address(weight), address(bias)
        row[buffers.WEIGHT_GRADIENT], row[buffers.BIAS_GRADIENT] = address(dw), address(dc)
        kept += weight, bias
    return kept


def share(plan: Plan, inputs: Inputs, begin: int, end: int, totals: Totals) -> None:
    """Take rows begin to end, with a helper for every thread's buffers but the first's."""
    layout, chunk, scratches = plan.layout, plan.chunk, plan.scratches

    def take_part(board: Array, number: int) -> None:
        work(layout.shape, layout.cell, inputs, begin, end, chunk, scratches, totals, board, number)

    carry_out(take_part, len(scratches.sums) - 1, (layout.shape, layout.cell, type(inputs.key)))


def layer_gradients(problem: Problem, need: Need) -> LayerGradients:
    """Allocate the gradients of weights and biases that are needed."""
    # without rows nobody writes them
    make = np.empty_like if problem.x.shape[0] else np.zeros_like
    return tuple(
        (
            make(layer.weight, order="C", subok=False) if weight else None,
            make(layer.bias, order="C", subok=False) if bias else None,
        )
        for layer, (weight, bias) in zip(problem.layers, need.layers, strict=True)
    )


def collect(problem: Problem, need: Need, totals: Totals, of_layers: LayerGradients, scale: float) -> Gradients:
    """Return the gradients that are needed in the shapes and the dtype of their inputs."""
    pixels, real = problem.x.shape[1], problem.x.dtype

    def result(wanted: bool, total: Array) -> Array | None:
        return (total * scale).astype(real, order="C") if wanted else None

    return Gradients(
        x=result(need.x, totals.x[:, :pixels]),
        weight=result(need.weight, totals.weight[:, :pixels]),
        mu=result(need.mu, totals.mu),
        logvar=result(need.logvar, totals.logvar),
        layers=of_layers,
    )
