"""What a problem refuses, and that it says which argument, what came and what was expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from mcelbo_kernels.problem import (
    ACTIVATIONS,
    CELLS,
    Activation,
    Draw,
    Layer,
    Need,
    Problem,
    check_draw,
    check_layers,
    check_upstream,
)
from tests.strategies import problems

B, N, D, H, M = 3, 4, 2, 6, 5


def make(**changes: Any) -> Problem:
    """Return a well-formed problem of two layers, with fields replaced."""
    fields: dict[str, Any] = {
        "x": np.zeros((B, M)),
        "mu": np.zeros((B, D)),
        "logvar": np.zeros((B, D)),
        "layers": (Layer(np.zeros((H, D)), np.zeros(H), Activation("relu")), Layer(np.zeros((M, H)), np.zeros(M))),
        "draw": Draw(N),
    }
    return Problem(**(fields | changes))


def layers(*shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[Layer, ...]:
    return tuple(Layer(np.zeros(weight), np.zeros(bias)) for weight, bias in shapes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, r"num_samples is 0: expected at least 1"),
        ({"num_samples": -3}, r"num_samples is -3: expected at least 1"),
        ({"num_samples": 4, "sampler": "sobel"}, r"sampler is 'sobel': expected one of 'iid', 'antithetic'"),
        ({"num_samples": 3, "sampler": "antithetic"}, r"num_samples is 3 and sample_offset 0: .*pairs, .*both .*even"),
        (
            {"num_samples": 4, "sampler": "antithetic", "sample_offset": 1},
            r"num_samples is 4 and sample_offset 1: .*pairs, .*both .*even",
        ),
        (
            {"num_samples": 4, "sampler": "sobol", "sample_offset": 2**32 - 3},
            rf"sample_offset is {2**32 - 3} and num_samples 4: sampler='sobol' has 2\*\*32 points",
        ),
        (
            {"num_samples": 9, "sampler": "sobol", "directions": np.ones((2, 3), np.uint32)},
            r"sample_offset is 0 and num_samples 9: sampler='sobol' has 2\*\*3 points",
        ),
        (
            {"num_samples": 9, "sampler": "sobol", "directions": np.ones((2, 33), np.uint32)},
            r"directions has shape \(2, 33\): expected \(latent, bits\) with at most 32 bits",
        ),
        (
            {"num_samples": 4, "sampler": "sobol", "directions": np.ones((2, 0), np.uint32)},
            r"directions has shape \(2, 0\): expected \(latent, bits\)",
        ),
        (
            {"num_samples": 4, "sampler": "sobol", "directions": np.ones(30, np.uint32)},
            r"directions has shape \(30,\): expected \(latent, bits\)",
        ),
        ({"num_samples": 4, "seed": -1}, r"seed is -1: expected 0 <= seed < 2\*\*63"),
        ({"num_samples": 4, "seed": 2**63}, rf"seed is {2**63}: expected 0 <= seed < 2\*\*63"),
        ({"num_samples": 4, "datum_offset": -1}, r"datum_offset is -1: expected 0 <= datum_offset < 2\*\*32"),
        ({"num_samples": 4, "datum_offset": 2**32}, rf"datum_offset is {2**32}: expected 0 <= datum_offset < 2\*\*32"),
        ({"num_samples": 4, "sample_offset": -2}, r"sample_offset is -2 .*: expected 0 <= sample_offset"),
        (
            {"num_samples": 4, "sample_offset": 2**63 - 3},
            rf"sample_offset is {2**63 - 3} .*num_samples 4: .*at most 2\*\*63 samples",
        ),
    ],
)
def test_draw_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Draw(**arguments)


def test_draw_accepts_the_ends_of_every_range() -> None:
    Draw(1)
    Draw(2, seed=2**63 - 1, sampler="antithetic", datum_offset=2**32 - 1, sample_offset=2**63 - 2)
    Draw(2**63)
    Draw(2, sampler="sobol", sample_offset=2**32 - 2)


def test_directions_are_words() -> None:
    with pytest.raises(TypeError, match="directions is int64: expected uint32"):
        Draw(4, sampler="sobol", directions=np.ones((2, 30), np.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros(M)}, r"x has shape \(5,\): expected two dimensions, batch first"),
        ({"mu": np.zeros((B, D, 1))}, r"mu has shape \(3, 2, 1\): expected two dimensions"),
        ({"logvar": np.zeros(())}, r"logvar has shape \(\): expected two dimensions"),
        ({"logvar": np.zeros((B, 1))}, r"logvar has shape \(3, 1\) but mu has shape \(3, 2\): expected the same"),
        ({"x": np.zeros((B + 1, M))}, r"x has a batch of 4 but mu has a batch of 3: expected the same"),
        ({"weight": np.ones(M)}, r"weight has shape \(5,\): expected \(3, 5\) or \(1, 5\)"),
        ({"weight": np.ones((B, 1))}, r"weight has shape \(3, 1\): expected \(3, 5\) or \(1, 5\)"),
        (
            {"draw": Draw(N, eps=np.zeros((B, N + 1, D)))},
            r"eps has shape \(3, 5, 2\): expected \(batch, num_samples, latent\) = \(3, 4, 2\)",
        ),
        (
            {"draw": Draw(N, datum_offset=2**32 - 2)},
            rf"datum_offset is {2**32 - 2} and the batch 3: together they exceed 2\*\*32 data",
        ),
        (
            {"layers": (Layer(np.zeros((M, D)), np.zeros(M), Activation("swish")),)},
            r"activation is 'swish': expected one of identity, relu, .*silu",
        ),
        ({"cell": "poisson"}, r"cell is 'poisson': expected one of 'squared_error', 'bernoulli'"),
        (
            {"cell": "bernoulli", "layers": (Layer(np.zeros((M, D)), np.zeros(M), Activation("sigmoid")),)},
            r"cell is 'bernoulli' and the last activation 'sigmoid': expected 'identity'",
        ),
        ({"layers": ()}, r"decoder has no layers: expected at least one"),
        (
            {"layers": layers(((M, D, 1), (M,)))},
            r"layer 0 .* weight \(5, 2, 1\) and bias \(5,\): expected \(o, i\)",
        ),
        ({"layers": layers(((M, D), (H,)))}, r"layer 0 of the decoder has weight \(5, 2\) and bias \(6,\): expected"),
        ({"layers": layers(((M, H), (M,)))}, r"layer 0 of the decoder takes 6 inputs but mu has 2 latents"),
        (
            {"layers": layers(((H, D), (H,)), ((M, H + 1), (M,)))},
            r"layer 1 of the decoder takes 7 inputs but the layer before it gives 6",
        ),
        ({"layers": layers(((H, D), (H,)))}, r"decoder returns 6 pixels but x has 5 pixels per datum"),
    ],
)
def test_problem_refuses_shapes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((B, M), np.uint8)}, r"x is uint8: expected float32 or float64"),
        ({"mu": np.zeros((B, D), np.float16)}, r"mu is float16: expected float32 or float64"),
        ({"logvar": np.zeros((B, D), np.float32)}, r"logvar is float32 but x is float64: expected one dtype"),
        ({"weight": np.ones((B, M), bool)}, r"weight is bool: expected float32 or float64"),
        ({"draw": Draw(N, eps=np.zeros((B, N, D), np.float32))}, r"eps is float32 but x is float64"),
        (
            {"layers": (Layer(np.zeros((M, D), np.float32), np.zeros(M)),)},
            r"weight of layer 0 is float32 but x is float64",
        ),
        ({"layers": (Layer(np.zeros((M, D)), np.zeros(M, int)),)}, r"bias of layer 0 is int64: expected float32"),
    ],
)
def test_problem_refuses_dtypes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make(**changes)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_problem_accepts_every_activation(activation: str) -> None:
    problem = make(layers=(Layer(np.zeros((M, D)), np.zeros(M), Activation(activation)),))
    assert problem.layers[0].activation.name == activation


@pytest.mark.parametrize("cell", CELLS)
def test_problem_accepts_every_cell(cell: str) -> None:
    assert make(cell=cell).cell == cell


@pytest.mark.parametrize("weight", [None, np.ones((1, M)), np.ones((B, M))])
def test_problem_accepts_every_weight(weight: np.ndarray | None) -> None:
    assert make(weight=weight).weight is weight


@pytest.mark.parametrize("shape", [(B, 1), (N,), (), (N, B)])
def test_upstream_has_one_value_for_each_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"upstream has shape .*: expected \(batch, num_samples\) = \(3, 4\)"):
        check_upstream(shape, make())
    check_upstream((B, N), make())


def test_checks_of_parts_alone() -> None:
    check_draw(Draw(N, datum_offset=2**32 - B), B, D, None)
    check_draw(Draw(N), B, D, (B, N, D))
    check_draw(Draw(N, directions=np.ones((1, 30), np.uint32)), B, D, None)  # which "iid" does not look at
    check_layers((((M, D), (M,)),), D, M)


@given(problems())
def test_need_everything_names_what_the_problem_has(problem: Problem) -> None:
    need = Need.everything(problem)
    assert need.weight == (problem.weight is not None)
    assert need.x
    assert need.mu
    assert need.logvar
    assert need.layers == ((True, True),) * len(problem.layers)
