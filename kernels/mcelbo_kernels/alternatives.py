"""The algorithms for sums over samples, and which problems they serve, the same ones on every backend."""

from __future__ import annotations

from mcelbo_kernels.problem import Problem

ALGORITHMS = ("auto", "grid", "gram")


def applies(problem: Problem) -> bool:
    """Tell whether the errors are a quadratic form of the last hidden layer, the same one for all data."""
    shared = problem.weight is None or len(problem.weight) == 1
    return problem.cell == "squared_error" and problem.layers[-1].activation.name == "identity" and shared


def check_algorithm(algorithm: str, problem: Problem) -> None:
    """Raise a ValueError unless the algorithm is known and serves the problem."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm is {algorithm!r}: expected one of {', '.join(map(repr, ALGORITHMS))}")
    if algorithm == "gram" and not applies(problem):
        raise ValueError(
            "algorithm is 'gram': expected the squared error of a last layer with identity output, and pixel weights "
            "that the batch shares"
        )
