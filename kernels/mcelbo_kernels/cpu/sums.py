"""Sums over samples by the algorithm that costs least: the grid, or the quadratic form of the last hidden layer."""

from __future__ import annotations

from mcelbo_kernels.alternatives import applies, check_algorithm
from mcelbo_kernels.cpu import gram, schedule
from mcelbo_kernels.problem import Gradients, Moments, Need, Problem


def value_and_gradients(
    problem: Problem, need: Need, threads: int = 1, algorithm: str = "auto"
) -> tuple[Moments, Gradients]:
    """Return the moments of T and the gradients of sum_b mean_i T[b, i], in one pass that stores nothing of size n.

    Parameters
    ----------
    problem : Problem
    need : Need
        Which gradients to return; the others are None.
    threads : int
        How many threads may take part; the result does not depend on it.
    algorithm : {"auto", "grid", "gram"}
        "gram", for squared errors of a last layer with identity output and pixel weights that the batch shares, is a
        quadratic form of the last hidden layer and touches no pixel; "auto" takes it where it costs less.

    Returns
    -------
    Moments
        mean[b] = mean_i T[b, i] and squares[b] = sum_i (T[b, i] - mean[b])^2.
    Gradients
        In the shapes and the dtype of their inputs.

    Raises
    ------
    ValueError
        If the algorithm is unknown, or "gram" and the errors are no quadratic form.

    Examples
    --------
    >>> import numpy as np
    >>> from mcelbo_kernels.problem import Draw, Layer
    >>> layer = Layer(np.ones((2, 1)), np.zeros(2))
    >>> problem = Problem(np.array([[1.0, 2.0]]), np.zeros((1, 1)), np.zeros((1, 1)), (layer,), Draw(2, seed=7))
    >>> moments, gradients = value_and_gradients(problem, Need.everything(problem))
    >>> moments.mean.shape, gradients.mu.shape
    ((1,), (1, 1))
    """
    check_algorithm(algorithm, problem)
    pixels, hidden = problem.layers[-1].weight.shape
    pays = gram.pays(len(problem.x), problem.draw.num_samples, hidden, pixels, need.gradient)
    if algorithm == "gram" or (algorithm == "auto" and applies(problem) and pays):
        return gram.value_and_gradients(problem, need, threads)
    return schedule.value_and_gradients(problem, need, threads)
