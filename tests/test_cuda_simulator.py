"""The CUDA kernels as Python, in numba's simulator: every kernel on shapes that no tile divides.

The simulator must be switched on before numba is imported, so that the file runs itself in a process of its own.
Sobol's points are left out: compiled functions read their table, and take no array of the simulator's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mcelbo_kernels import reference
from mcelbo_kernels.problem import Activation, Draw, Layer, Need, Problem
from tests.torch_twin import named

pytest.importorskip("numba_cuda", reason="numba-cuda, whose simulator runs the CUDA kernels, is not installed")

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
simulated = pytest.mark.skipif(not SIMULATED, reason="runs in the process of test_in_a_process_of_its_own")


@pytest.mark.slow
@pytest.mark.skipif(SIMULATED, reason="this is that process")
def test_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", __file__]
    run = subprocess.run(command, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def stack(
    widths: tuple[int, ...], names: tuple[str, ...], batch: int, draw: Draw, real: Any = np.float32, **fields: Any
) -> Problem:
    """A stack of layers with numbers of order one."""
    rng = np.random.default_rng(3)

    def normal(*size: int) -> Any:
        return rng.standard_normal(size).astype(real)

    layers = tuple(
        Layer(normal(o, i) * real(i**-0.5), normal(o), Activation(name, 0.3))
        for i, o, name in zip(widths[:-1], widths[1:], names, strict=True)
    )
    return Problem(
        normal(batch, widths[-1]), normal(batch, widths[0]), normal(batch, widths[0]), layers, draw, **fields
    )


EPS = np.random.default_rng(6).standard_normal((2, 4, 3)).astype(np.float32)
WEIGHT = np.linspace(0, 2, 11, dtype=np.float32)[None]
PROBLEMS = {
    "one layer": stack((3, 11), ("sigmoid",), 2, Draw(4, 5)),
    "rows that share no block": stack((3, 11), ("identity",), 3, Draw(3, 5, sample_offset=1)),
    "two layers, antithetic": stack((2, 9, 11), ("tanh", "softplus"), 2, Draw(6, 5, "antithetic")),
    "three layers of logits": stack((2, 3, 9, 11), ("silu", "elu", "identity"), 2, Draw(5, 5), cell="bernoulli"),
    "pixel weights": stack((3, 11), ("sigmoid",), 2, Draw(4, 5), weight=WEIGHT),
    "double precision": stack((2, 9, 11), ("elu", "sigmoid"), 2, Draw(4, 5), np.float64),
    "noise of one's own": stack((3, 11), ("sigmoid",), 2, Draw(4, eps=EPS)),
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 8 x 8 and chunks of as many rows, so that a few threads are enough for several of each.

    Two groups of threads share out the longer sums.
    """
    from mcelbo_kernels.cuda import layout, tile

    small = tile.Tile(2, 2, 4, 4)
    for name in ("LARGE", "SMALL", "NARROW", "SMALL_DOUBLE", "NARROW_DOUBLE"):
        monkeypatch.setattr(layout, name, small)
    monkeypatch.setattr(layout, "GROUPS", {small: (1, 2)})
    monkeypatch.setattr(layout, "FEWEST_SLICES", 0.5)
    monkeypatch.setattr(layout, "BYTES_OF_A_CHUNK", 0)
    monkeypatch.setattr(layout, "FEWEST_ROWS", 8)
    monkeypatch.setattr(layout, "LONGEST_SUM", 8)
    monkeypatch.setattr(layout, "SHORTEST_SUM", 3)


def of_latents_and_layers(problem: Problem) -> Need:
    """What a training step asks for."""
    return Need(False, False, True, True, ((True, True),) * len(problem.layers))


def assert_value_and_gradients(problem: Problem, need: Need, algorithm: str = "grid") -> None:
    """Compare with the reference."""
    from mcelbo_kernels.cuda import value_and_gradients
    from tests.cuda_simulator import Simulator

    seed = np.array([problem.draw.seed])
    moments, gradients = value_and_gradients(problem, need, seed, Simulator(), algorithm)
    exact_moments, exact = reference.value_and_gradients(problem, need)
    np.testing.assert_allclose(moments.mean, exact_moments.mean, rtol=1e-6)
    np.testing.assert_allclose(moments.squares, exact_moments.squares, rtol=1e-5)
    for key, expected in named(exact).items():
        found = named(gradients)[key].reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@simulated
@pytest.mark.parametrize("name", PROBLEMS)
def test_value_and_gradients(name: str, tiny: None) -> None:
    assert_value_and_gradients(PROBLEMS[name], Need.everything(PROBLEMS[name]))


@simulated
def test_sums_over_rows_in_parts(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one datum, whose samples several blocks share out: a block is said to add up few of them at once."""
    from mcelbo_kernels.cuda import layout, rows

    monkeypatch.setattr(layout, "FEWEST_ROWS", 1 << 20)
    monkeypatch.setattr(layout, "WAITS_OF_A_LAUNCH", 0)
    monkeypatch.setattr(rows, "THREADS", 32)
    monkeypatch.setattr(rows, "AT_ONCE", 1)
    problem = stack((2, 11), ("sigmoid",), 1, Draw(40, 5))
    assert_value_and_gradients(problem, Need.everything(problem))


@simulated
@pytest.mark.parametrize("needed", ["everything", "what a training step asks for"])
def test_errors_and_their_gradients(needed: str, tiny: None) -> None:
    from mcelbo_kernels.cuda import errors, gradients
    from tests.cuda_simulator import Simulator

    problem, target = PROBLEMS["pixel weights"], Simulator()
    seed = np.array([problem.draw.seed])
    need = Need.everything(problem) if needed == "everything" else of_latents_and_layers(problem)
    exact = reference.errors(problem)
    np.testing.assert_allclose(errors(problem, seed, target).reshape(exact.shape), exact, rtol=1e-5)
    upstream = np.linspace(-1, 1, exact.size, dtype=np.float32).reshape(exact.shape)
    found = named(gradients(problem, upstream, need, seed, target))
    for key, expected in named(reference.gradients(problem, upstream, need)).items():
        allowed = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found[key].reshape(expected.shape), expected, rtol=1e-5, atol=allowed)


@simulated
@pytest.mark.parametrize("name", ["one layer", "rows that share no block", "pixel weights", "noise of one's own"])
def test_the_pass_over_few_latents(name: str) -> None:
    assert_value_and_gradients(PROBLEMS[name], of_latents_and_layers(PROBLEMS[name]))


@simulated
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_the_quadratic_form(weight: Any, tiny: None) -> None:
    problem = stack((2, 5, 11), ("tanh", "identity"), 3, Draw(6, 5), weight=weight)
    assert_value_and_gradients(problem, Need.everything(problem), "gram")


@simulated
@pytest.mark.parametrize("sampler", ["iid", "antithetic"])
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_noise(sampler: str, real: Any) -> None:
    from mcelbo_kernels.cuda import noise
    from tests.cuda_simulator import Simulator

    draw = Draw(6, 5, sampler, 2, 8)
    found = noise(draw, 3, 5, real, np.array([5]), Simulator())
    expected = reference.noise(draw, 3, 5)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-5 if real == np.float32 else 1e-12)


@simulated
@pytest.mark.parametrize("cell", ["squared_error", "bernoulli"])
@pytest.mark.parametrize("weights", [0, 1, 3])
def test_decoded_samples(cell: str, weights: int) -> None:
    from mcelbo_kernels.cuda import decoded_errors
    from tests.cuda_simulator import Simulator
    from tests.test_pixels import Case, expected

    rng = np.random.default_rng(4)
    y, x, upstream = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 5, 11), (3, 11), (3, 5)))
    weight = rng.random((weights, 11), np.float32) if weights else None
    found = decoded_errors(cell, y, x, weight, upstream, True, True, weights > 0, Simulator())
    results, sizes = expected(Case(cell, y, x, weight, upstream))
    for name in ("errors", "y", "x", *(["weight"] if weights else [])):
        ours = getattr(found, name).reshape(results[name].shape)
        assert (abs(ours - results[name]) <= 1e-6 * sizes[name]).all(), name


@simulated
def test_every_kernel_was_simulated() -> None:
    from tests.cuda_kernels import SPECIALISATIONS
    from tests.cuda_simulator import Simulator

    assert {case.make().name.split()[0] for case in SPECIALISATIONS} <= Simulator.simulated
