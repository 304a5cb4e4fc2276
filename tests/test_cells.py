"""Every cell: its kernel against torch in float64, and the fused pass with it against the reference."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from mcelbo_kernels import cpu, reference
from mcelbo_kernels.cpu.cell import Cell, evaluate, padding_of
from mcelbo_kernels.cpu.shape import Shape, host_shape, lanes_of
from mcelbo_kernels.cpu.tile import load_vector, store_vector
from mcelbo_kernels.numerics.cells import BY_NAME
from mcelbo_kernels.problem import ACTIVATIONS, CELLS, Activation, Draw, Layer, Need, Problem, accepts
from mcelbo_kernels.reference.activations import activate, slope
from tests.bounds import magnitudes
from tests.strategies import away_from_kinks
from tests.torch_twin import TORCH_CELLS, named, torch_cell

Array = NDArray[Any]
REALS = (np.float32, np.float64)
NOTHING = Need(False, False, False, False, ((False, False),))
by_cell = pytest.mark.parametrize("cell", CELLS)
by_real = pytest.mark.parametrize("real", REALS)


@njit(error_model="numpy")
def over_vectors(shape, function, y, x, out):  # y, x (N,), out (3, N)
    for i in range(0, y.size, lanes_of(shape)):
        t, dy, dx = function(load_vector(shape, y, i), load_vector(shape, x, i))
        for part, value in enumerate((t, dy, dx)):
            store_vector(out, part * y.size + i, value)


def in_vectors(cell: str, y: Array, x: Array) -> Array:
    """Return t, dt/dy and dt/dx (3, N) as the kernel of the cell computes them."""
    padding = -y.size % 16
    out = np.zeros((3, y.size + padding), y.dtype)
    over_vectors(host_shape(y.dtype.name), BY_NAME[cell].cell, np.pad(y, (0, padding)), np.pad(x, (0, padding)), out)
    return out[:, : y.size]


def of_torch(cell: str, y: Array, x: Array) -> Array:
    """Return the same by torch and autograd in float64."""
    leaves = [torch.tensor(array.astype(np.float64), requires_grad=True) for array in (y, x)]
    t = torch_cell(cell, *leaves)
    t.sum().backward()
    return np.stack([t.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])


def test_torch_has_every_cell() -> None:
    assert tuple(TORCH_CELLS) == CELLS


@by_real
@by_cell
def test_value_and_derivatives(cell: str, real: Any) -> None:
    rng = np.random.default_rng(3)
    special = [0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 90.0, -90.0, 800.0, -800.0, 1e4, -1e4]
    y = np.concatenate([rng.uniform(-8, 8, 4000), np.repeat(special, 3)]).astype(real)
    x = np.concatenate([rng.uniform(0, 1, 3000), rng.integers(0, 2, 1000), np.tile([0, 1, 0.3], 12)]).astype(real)
    exact = of_torch(cell, y, x)
    # a few epsilon on the scale of what is added up: the value, a product of y and x, and their difference
    y, x = y.astype(np.float64), x.astype(np.float64)
    scale = np.stack([np.abs(exact[0]) + np.abs(x * y), *[np.abs(x) + np.abs(y)] * 2]) + 1
    assert (np.abs(in_vectors(cell, y.astype(real), x.astype(real)) - exact) <= 4 * np.finfo(real).eps * scale).all()
    assert (np.abs(np.stack(BY_NAME[cell].arrays(y, x, np)) - exact) <= 4 * np.finfo(np.float64).eps * scale).all()


@by_real
def test_a_pixel_that_bernoulli_predicts_well_keeps_its_digits(real: Any) -> None:
    # t = ln(1 + e^-|y|) at x = 1 and y > 0, or x = 0 and y < 0: relative precision down to e^-80
    y = np.linspace(0.5, 80, 100).astype(real)
    for sign in (1, -1):
        found = in_vectors("bernoulli", sign * y, np.full_like(y, sign > 0))[0]
        np.testing.assert_allclose(found, np.log1p(np.exp(-y.astype(np.float64))), rtol=8 * np.finfo(real).eps)


@by_real
@by_cell
def test_nan_is_kept(cell: str, real: Any) -> None:
    y, x = np.array([np.nan, 0.5], real), np.array([0.5, np.nan], real)
    assert np.isnan(in_vectors(cell, y, x)[0]).all()
    assert np.isnan(BY_NAME[cell].arrays(y, x, np)[0]).all()


@by_real
@by_cell
def test_infinity_is_what_it_is_in_torch(cell: str, real: Any) -> None:
    y, x = np.array([np.inf, -np.inf, np.inf, -np.inf], real), np.array([0, 0, 1, 1], real)
    np.testing.assert_array_equal(np.isfinite(in_vectors(cell, y, x)[0]), np.isfinite(of_torch(cell, y, x)[0]))


# --- behind every activation ---

SHAPES = [host_shape("float32"), host_shape("float64"), Shape("float32", 8, 2, 4), Shape("float64", 8, 2, 2)]
OUTPUTS = [(cell, name) for cell in CELLS for name in ACTIVATIONS if accepts(cell, name)]
every_output = pytest.mark.parametrize(("cell", "name"), OUTPUTS)


@njit(error_model="numpy")
def evaluated(shape, cell, a, x, parameter, out):  # a, x (N,), out (3, N)
    for i in range(0, a.size, lanes_of(shape)):
        t, da, dx = evaluate(cell, load_vector(shape, a, i), load_vector(shape, x, i), parameter)
        for part, value in enumerate((t, da, dx)):
            store_vector(out, part * a.size + i, value)


def in_kernel(shape: Shape, cell: Cell, a: Array, x: Array, parameter: float) -> Array:
    """Return t, dt/da and dt/dx (3, N) of pre-activations as a pass has them; N is a multiple of 16."""
    out = np.empty((3, a.size), shape.real)
    evaluated(shape, cell, a.astype(shape.real), x.astype(shape.real), getattr(np, shape.real)(parameter), out)
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_output
def test_a_cell_behind_an_activation(cell: str, name: str, shape: Shape) -> None:
    rng = np.random.default_rng(5)
    a, x = rng.uniform(-6, 6, 1024).astype(shape.real), rng.uniform(0, 1, 1024).astype(shape.real)
    found = in_kernel(shape, Cell(name, (), cell, True, False), a, x, 0.3)
    a, x, activation = a.astype(float), x.astype(float), Activation(name, float(getattr(np, shape.real)(0.3)))
    y, slope_ = activate(activation, a), slope(activation, a)
    t, dy, dx = BY_NAME[cell].arrays(y, x, np)
    eps = np.finfo(shape.real).eps
    of_y, of_slope = 8 * eps * (np.abs(a) + 1), 4 * eps * (np.abs(x) + np.abs(y) + 1)
    of_dy = 2 * of_y + of_slope  # second derivatives are at most 2
    allowed = [np.abs(dy) * of_y + of_y**2 + of_slope, np.abs(slope_) * of_dy + np.abs(dy) * of_y, of_dy]
    assert (np.abs(found - [t, dy * slope_, dx]) <= np.stack(allowed) + of_dy * of_y).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_output
@given(parameter=st.sampled_from([0.01, 0.3, 1.0, 2.0]) | st.floats(0, 100, width=32))
def test_a_pixel_of_padding_adds_nothing(cell: str, name: str, shape: Shape, parameter: float) -> None:
    kind = Cell(name, (), cell, True, False)
    t, da, dx = in_kernel(shape, kind, np.full(16, padding_of(kind)), np.zeros(16), parameter)
    assert (t == 0).all()
    assert (da == 0).all()
    assert np.isfinite(dx).all()  # of weight 0, but not excluded where there are no weights


# --- in the fused pass ---


def fused_problem(cell: str, real: Any, weight: str) -> Problem:
    """A problem that spans two tiles on every axis, and where rounding meets no kink."""
    drawn = (random_problem(seed, cell, real, weight) for seed in itertools.count())
    return next(problem for problem in drawn if away_from_kinks(problem))


def random_problem(seed: int, cell: str, real: Any, weight: str) -> Problem:
    rng = np.random.default_rng(seed)
    batch, latent, pixels = 3, 7, 41

    def normal(*size: int) -> Array:
        return rng.standard_normal(size).astype(real)

    weights = rng.uniform(0.1, 2, (1 if weight == "shared" else batch, pixels)).astype(real)
    weights[:, ::5] = 0
    outputs = BY_NAME[cell].outputs or ("sigmoid",)
    return Problem(
        normal(batch, pixels),
        normal(batch, latent),
        normal(batch, latent),
        (Layer(normal(pixels, latent), normal(pixels), Activation(outputs[0])),),
        Draw(29, seed=3),
        None if weight == "none" else weights,
        cell,
    )


@pytest.mark.parametrize("real", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("weight", ["none", "shared", "per datum"])
@by_cell
def test_the_fused_pass_is_the_reference(cell: str, weight: str, real: Any) -> None:
    problem = fused_problem(cell, real, weight)
    upstream = np.random.default_rng(0).standard_normal((3, 29)).astype(real)
    slack = 12 * np.finfo(real).eps  # of terms whose sizes count every rounding where it enters; sums are short
    sizes = magnitudes(problem, upstream)
    assert (np.abs(cpu.errors(problem) - reference.errors(problem)) <= slack * sizes["errors"]).all()
    everything = Need.everything(problem)
    exact = named(reference.gradients(problem, upstream, everything))
    for name, ours in named(cpu.gradients(problem, upstream, everything)).items():
        assert (np.abs(ours - exact[name]) <= slack * sizes[name]).all(), name
    moments, gradients = cpu.value_and_gradients(problem, everything)
    exact_moments, exact_gradients = reference.value_and_gradients(problem, everything)
    np.testing.assert_allclose(moments.mean, exact_moments.mean, rtol=slack)
    np.testing.assert_allclose(moments.squares, exact_moments.squares, rtol=1e3 * slack)
    sizes, exact = magnitudes(problem, np.full((3, 29), 1 / 29)), named(exact_gradients)
    for name, ours in named(gradients).items():
        assert (np.abs(ours - exact[name]) <= slack * sizes[name]).all(), name


@by_cell
def test_only_what_is_needed_comes_and_it_is_the_same(cell: str) -> None:
    problem = fused_problem(cell, np.float32, "per datum")
    every = named(cpu.value_and_gradients(problem, Need.everything(problem))[1])
    needs = [NOTHING._replace(**{name: True}) for name in ("x", "weight", "mu", "logvar")]
    needs += [NOTHING._replace(layers=(pair,)) for pair in ((True, False), (False, True))]
    for need in needs:
        ((name, found),) = named(cpu.value_and_gradients(problem, need)[1]).items()
        np.testing.assert_array_equal(found, every[name])


@by_cell
@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_an_excluded_pixel_may_hold_anything(cell: str, hole: float) -> None:
    problem = fused_problem(cell, np.float32, "shared")
    (layer,) = problem.layers
    x, bias = problem.x.copy(), layer.bias.copy()
    x[:, 5], bias[10] = hole, hole
    holed = replace(problem, x=x, layers=(replace(layer, bias=bias),))
    need = Need.everything(problem)._replace(weight=False)
    (clean, gradients), (dirty, others) = (cpu.value_and_gradients(p, need) for p in (problem, holed))
    np.testing.assert_array_equal(dirty, clean)
    for name, array in named(others).items():
        np.testing.assert_array_equal(array, named(gradients)[name])


@by_cell
def test_nan_shows_in_its_datum_alone(cell: str) -> None:
    problem = fused_problem(cell, np.float32, "none")
    problem.x[1, 5] = np.nan
    moments, gradients = cpu.value_and_gradients(problem, Need.everything(problem))
    np.testing.assert_array_equal(np.isfinite(moments.mean), [True, False, True])
    np.testing.assert_array_equal(np.isfinite(gradients.mu).all(1), [True, False, True])


def test_extreme_logits_stay_finite() -> None:
    problem = fused_problem("bernoulli", np.float32, "none")
    problem.layers[0].bias[:] = np.where(np.arange(41) % 2, 1e4, -1e4)
    moments, gradients = cpu.value_and_gradients(problem, Need.everything(problem))
    np.testing.assert_allclose(moments.mean, reference.value_and_gradients(problem, NOTHING)[0].mean, rtol=1e-6)
    assert all(np.isfinite(array).all() for array in named(gradients).values())
