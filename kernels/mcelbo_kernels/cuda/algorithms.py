"""Sums over samples by the algorithm that costs least: the grid, or the quadratic form of the last hidden layer."""

from __future__ import annotations

from typing import Any

from mcelbo_kernels.alternatives import applies, check_algorithm
from mcelbo_kernels.cuda import choice, gram, schedule
from mcelbo_kernels.cuda.target import Target
from mcelbo_kernels.problem import Gradients, Moments, Need, Problem


def value_and_gradients(
    problem: Problem, need: Need, seed: Any, target: Target, algorithm: str = "auto"
) -> tuple[Moments, Gradients]:
    """Return the moments of T and the gradients of sum_b mean_i T[b, i], flat arrays in the device's memory.

    Parameters
    ----------
    problem, need, seed, target
        As for `schedule.value_and_gradients`.
    algorithm : {"auto", "grid", "gram"}
        "gram", for squared errors of a last layer with identity output and pixel weights that the batch shares, is a
        quadratic form of the last hidden layer and touches no pixel; "auto" takes it where it is to cost less.

    Returns
    -------
    Moments, Gradients

    Raises
    ------
    ValueError
        If the algorithm is unknown, or "gram" and the errors are no quadratic form.
    """
    check_algorithm(algorithm, problem)
    pixels, hidden = problem.layers[-1].weight.shape
    pays = choice.pays(len(problem.x), problem.draw.num_samples, hidden, pixels, need.gradient)
    # without data, latents or pixels the form's kernels would be launched for no block
    some = min(len(problem.x), hidden, pixels) > 0
    if some and (algorithm == "gram" or (algorithm == "auto" and applies(problem) and pays)):
        return gram.value_and_gradients(problem, need, seed, target)
    return schedule.value_and_gradients(problem, need, seed, target)
