"""Sums by the quadratic form on CUDA: the kernels' PTX, interpreted, against the reference and against the grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from mcelbo_kernels import reference
from mcelbo_kernels.problem import Activation, Draw, Layer, Moments, Need, Problem
from tests.bounds import magnitudes
from tests.strategies import problems
from tests.test_gram import well_fitted
from tests.torch_twin import named

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the CUDA kernels, is not installed")

from mcelbo_kernels.cuda import algorithms, choice, gram, layers, layout, plan, quadratic, schedule
from mcelbo_kernels.cuda.seam import Kernel, float32
from mcelbo_kernels.cuda.tile import NARROW
from tests.cuda_targets import Interpreter, on_device, on_host, seed_of, text_of

Array = Any
# Few kernels to compile, each of which takes a second.
drawn = problems(
    dtypes=(np.float32,),
    max_layers=2,
    names=("tanh",),
    outputs=("identity",),
    cells=("squared_error",),
    samplers=("injected",),
    weights=("none", "shared"),
    shapes=("any", "ragged", "once"),
)


class Noting(Interpreter):
    """A device that notes which kernels it runs."""

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []

    def launch(self, kernel: Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
        self.kernels.append(kernel)
        super().launch(kernel, blocks, *arguments)

    @property
    def names(self) -> list[str]:
        return [kernel.name.split()[0] for kernel in self.kernels]


def run(module: Any, problem: Problem, need: Need, target: Any = None) -> tuple[Moments, dict[str, Array]]:
    """Return a module's moments and gradients by name, in the shapes of their inputs."""
    moments, found = module.value_and_gradients(on_device(problem), need, seed_of(problem), target or Interpreter())
    return Moments(*(memory.array for memory in moments)), named(on_host(found, problem))


def assert_right(problem: Problem, target: Any = None) -> None:
    """Moments and gradients within the roundings of their terms."""
    need, n = Need.everything(problem), problem.draw.num_samples
    exact, exact_gradients = reference.value_and_gradients(problem, need)
    moments, gradients = run(gram, problem, need, target)
    # The terms are those of the direct sum about another origin, so that each is as large as one of those may be. Few
    # are added up one after the other in the problem's precision: of those sums' roundings most cancel.
    eps = 8 * np.finfo(problem.x.dtype).eps
    sizes = magnitudes(problem, np.full((len(problem.x), n), 1 / n))
    assert set(gradients) == set(named(exact_gradients))
    for name, array in named(exact_gradients).items():
        assert gradients[name].dtype == problem.x.dtype
        assert np.abs(gradients[name] - array).max(initial=0) <= eps * sizes[name].max(initial=0), name
    error = eps * sizes["errors"].max(initial=0)
    assert np.abs(moments.mean - exact.mean).max(initial=0) <= error
    # sum (t + e)^2 - t^2 <= 2 |t| |e| + |e|^2
    assert (np.abs(moments.squares - exact.squares) <= 2 * error * (n * exact.squares) ** 0.5 + n * error**2).all()


def made(real: Any, widths: tuple[int, ...], batch: int, draw: Draw, weighted: bool) -> Problem:
    """Return a problem of numbers of order one; weights are shared, with zeros."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> Array:
        return (scale * rng.standard_normal(shape)).astype(real)

    names = ["tanh"] * (len(widths) - 2) + ["identity"]
    of_layers = tuple(
        Layer(normal(outputs, inputs, scale=inputs**-0.5), normal(outputs), Activation(name))
        for name, (inputs, outputs) in zip(names, pairwise(widths), strict=True)
    )
    weight = rng.uniform(0.1, 2, (1, widths[-1])).astype(real)
    weight[:, ::3] = 0
    latent = batch, widths[0]
    given = normal(batch, widths[-1]), normal(*latent), normal(*latent, scale=0.5)
    return Problem(*given, of_layers, draw, weight if weighted else None)


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every chunk be as short as it may be, and every sum be cut."""
    caches = plan.plan_of, gram.products_of
    for name, value in (("FEWEST_ROWS", 1), ("BYTES_OF_A_CHUNK", 1), ("LONGEST_SUM", 32), ("SHORTEST_SUM", 24)):
        monkeypatch.setattr(layout, name, value)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@settings(max_examples=8)
@given(problem=drawn)
def test_against_the_reference(problem: Problem) -> None:
    assert_right(problem)


DEEP = (35, 33, 67, 70)


@pytest.mark.parametrize(
    ("real", "widths"),
    [(np.float32, DEEP), (np.float64, (67, 70)), pytest.param(np.float64, DEEP, marks=pytest.mark.slow)],
)
def test_many_tiles_chunks_and_parts(real: Any, widths: tuple[int, ...], in_pieces: None) -> None:
    eps = np.random.default_rng(1).standard_normal((5, 27, widths[0])).astype(real)
    problem = made(real, widths, 5, Draw(27, eps=eps), True)
    target = Noting()
    assert_right(problem, target)
    assert target.names.count("form") == 2


@pytest.mark.parametrize(("sampler", "widths"), [("iid", (3, 5)), ("sobol", (3, 5)), ("antithetic", (3, 6, 5))])
def test_drawn_noise(sampler: str, widths: tuple[int, ...]) -> None:
    assert_right(made(np.float32, widths, 3, Draw(10, 7, sampler, datum_offset=4, sample_offset=2), False))


@pytest.mark.parametrize("hidden", [None, 33])
def test_a_well_fitted_model_is_summed_as_exactly_as_by_the_grid(hidden: int | None) -> None:
    problem = well_fitted(np.float32, hidden, n=12)
    need = Need.everything(problem)
    exact, exact_gradients = reference.value_and_gradients(problem, need)
    moments, gradients = run(gram, problem, need)
    direct, direct_gradients = run(schedule, problem, need)
    error, error_of_grid = (np.abs(found.mean / exact.mean - 1).max() for found in (moments, direct))
    assert error <= error_of_grid + 1e-6
    for name, truth in named(exact_gradients).items():
        ours, theirs = (np.abs(found[name] - truth).max() for found in (gradients, direct_gradients))
        assert ours <= theirs + 1e-6 * np.abs(truth).max(), name


SUMMED = ["weight_gradient", "parameter_gradient"]
VALUE = ["hidden", "backward", "centre_errors", "backward", *SUMMED, "draw", "hidden", "form", "moments"]
CHANGED = ["backward", "residuals"]
NEEDS = {
    "nothing": [],
    "x": ["pixel_gradient", *CHANGED],
    "weight": ["pixel_gradient", *SUMMED, *CHANGED, "backward", "pixel_weight_gradient"],
    "mu": ["backward", "latent_gradient"],
    "weight of layer 0": SUMMED,
    "bias of layer 0": SUMMED,
    "weight of layer 1": [
        *("pixel_gradient", *SUMMED, *CHANGED, "backward", "weight_gradient", "weight_gradient", "layer_gradient")
    ],
    "bias of layer 1": ["pixel_gradient", *CHANGED, "weight_gradient", "layer_gradient"],
}


@pytest.mark.parametrize("only", NEEDS)
def test_what_nobody_needs_is_left_out_and_changes_nothing(only: str) -> None:
    eps = np.random.default_rng(1).standard_normal((4, 6, 3)).astype(np.float32)
    problem = made(np.float32, (3, 6, 8), 4, Draw(6, eps=eps), True)
    everything = run(gram, problem, Need.everything(problem))
    of_layers = tuple((only == f"weight of layer {i}", only == f"bias of layer {i}") for i in range(2))
    target = Noting()
    moments, found = run(gram, problem, Need(only == "x", only == "weight", only == "mu", False, of_layers), target)
    assert target.names == [*VALUE, *NEEDS[only]]
    before_the_form = only in ("mu", "weight of layer 0", "bias of layer 0")
    assert all(kernel.name.count("gradient=True") == before_the_form for kernel in target.kernels[7:9])
    # those of the posterior come together
    assert set(found) == {"nothing": set(), "mu": {"mu", "logvar"}}.get(only, {only})
    np.testing.assert_array_equal(moments, everything[0])
    for name, array in found.items():
        np.testing.assert_array_equal(array, everything[1][name])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_pixel_counts_where_its_weight_does(bad: float) -> None:
    eps = np.random.default_rng(1).standard_normal((4, 6, 3)).astype(np.float32)
    clean = made(np.float32, (3, 6, 8), 4, Draw(6, eps=eps), True)
    excluded, counted = (replace(clean, x=clean.x.copy()) for _ in range(2))
    excluded.x[1, 3], counted.x[1, 4] = bad, bad
    need = Need.everything(clean)._replace(weight=False)
    (moments, gradients), (again, same), (spoilt, of_spoilt) = (
        run(gram, problem, need) for problem in (clean, excluded, counted)
    )
    np.testing.assert_array_equal(again, moments)
    for name, array in gradients.items():
        np.testing.assert_array_equal(same[name], array)
    expected, expected_gradients = reference.value_and_gradients(counted, need)
    np.testing.assert_array_equal(np.isfinite(spoilt), np.isfinite(expected))
    for name, array in named(expected_gradients).items():
        np.testing.assert_array_equal(np.isfinite(of_spoilt[name]), np.isfinite(array))


def test_no_tile_of_single_precision_computes_in_double() -> None:
    form = quadratic.form(quadratic.Form(NARROW, float32, True, True))
    centred = layers.hidden(layers.Hidden(NARROW, float32, "tanh", True, True))
    for kernel in (form, centred):
        assert ".f64" not in text_of(kernel)


def test_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for module, name in ((gram, "gram"), (schedule, "grid")):
        monkeypatch.setattr(module, "value_and_gradients", lambda *_, name=name: taken.append(name))
    few, many = well_fitted(np.float32, n=2), well_fitted(np.float32, n=20_000_000)
    each = replace(many, weight=np.ones((6, 70), np.float32))
    for problem, algorithm in ((few, "auto"), (many, "auto"), (each, "auto"), (few, "gram"), (many, "grid")):
        algorithms.value_and_gradients(problem, Need.everything(problem), None, Interpreter(), algorithm)
    assert taken == ["grid", "gram", "grid", "gram", "grid"]
    no_data = replace(few, x=few.x[:0], mu=few.mu[:0], logvar=few.logvar[:0])
    of_nothing = Layer(np.zeros((70, 0), np.float32), np.zeros(70, np.float32))
    no_latents = replace(few, mu=few.mu[:, :0], logvar=few.logvar[:, :0], layers=(of_nothing,))
    for problem in (no_data, no_latents):
        algorithms.value_and_gradients(problem, Need.everything(problem), None, Interpreter(), "gram")
    assert taken[5:] == ["grid", "grid"]
    with pytest.raises(ValueError, match="algorithm is 'gram': expected the squared error"):
        algorithms.value_and_gradients(each, Need.everything(each), None, Interpreter(), "gram")


def test_where_it_is_to_cost_less() -> None:
    # of many samples and pixels, few of which a launch is worth
    assert choice.pays(128, 100, 512, 784)
    assert not choice.pays(128, 1, 512, 784)
    assert not choice.pays(1, 1, 16, 784)
    # a square of the hidden layer is to be smaller than its product with the pixels
    assert choice.pays(128, 100_000, 1500, 784)
    assert not choice.pays(128, 100_000, 1600, 784)
    assert not choice.pays(128, 100_000, 800, 784, gradient=False)


def test_a_batch_whose_matrices_would_fill_the_memory() -> None:
    largest = choice.MOST_OF_A_BATCH // 784
    assert choice.pays(largest, 100_000, 512, 784)
    assert not choice.pays(largest + 1, 100_000, 512, 784)
