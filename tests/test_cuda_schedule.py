"""The CUDA kernels, as the PTX that they compile to, against the reference: values, gradients, chunks, edges.

Each specialisation of a kernel takes seconds to compile, so that few are drawn here; all activations and cells are in
tests/test_cuda_scalars.py, and all specialisations in tests/test_cuda_machine_code.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcelbo_kernels import cpu, reference
from mcelbo_kernels.problem import Activation, Draw, Layer, Need, Problem
from tests import cuda_targets as cuda
from tests.bounds import magnitudes
from tests.strategies import away_from_kinks, problems, upstreams
from tests.test_grid import assert_gradients, assert_same, slack
from tests.torch_twin import named

layout = pytest.importorskip("mcelbo_kernels.cuda.layout")
schedule = pytest.importorskip("mcelbo_kernels.cuda.schedule")
plan = pytest.importorskip("mcelbo_kernels.cuda.plan")

Array = Any
few = settings(max_examples=12)
one_layer = problems(
    max_layers=1, names=("sigmoid",), cells=("squared_error",), samplers=("iid", "injected"), dtypes=(np.float32,)
)
stacks = problems(
    min_layers=2, names=("tanh",), cells=("squared_error",), samplers=("iid",), dtypes=(np.float32,), weights=("none",)
)


def stack(widths: tuple[int, ...], batch: int, draw: Draw, real: Any = np.float32, **fields: Any) -> Problem:
    """A stack of relu layers with sigmoid output, and numbers of order one that rounding moves across no kink."""
    for seed in range(100):
        rng = np.random.default_rng(seed)

        def normal(*size: int, rng: np.random.Generator = rng) -> Array:
            return rng.standard_normal(size).astype(real)

        names = ["relu"] * (len(widths) - 2) + ["sigmoid"]
        layers = tuple(
            Layer(normal(o, i) * real(max(1, i) ** -0.5), normal(o), Activation(name))
            for i, o, name in zip(widths[:-1], widths[1:], names, strict=True)
        )
        x, mu, logvar = normal(batch, widths[-1]), normal(batch, widths[0]), normal(batch, widths[0])
        problem = Problem(x, mu, logvar, layers, draw, **fields)
        if away_from_kinks(problem):
            return problem
    raise AssertionError


def assert_right(problem: Problem) -> None:
    """Value and all gradients, within the roundings of their terms."""
    n, need = problem.draw.num_samples, Need.everything(problem)
    moments, gradients = cuda.value_and_gradients(problem, need)
    assert_gradients(gradients, problem, np.full((len(problem.x), n), 1 / n))
    exact, size = reference.errors(problem), magnitudes(problem)["errors"]
    assert (np.abs(moments.mean - exact.mean(1)) <= slack(problem) * size.mean(1)).all()
    deviation = np.abs(exact - exact.mean(1, keepdims=True))
    allowed = 2 * slack(problem) * (deviation * size).sum(1) + (slack(problem) * size).sum(1) ** 2
    assert (np.abs(moments.squares - (deviation**2).sum(1)) <= allowed + 1e-12).all()


@few
@given(problem=one_layer | stacks)
def test_errors(problem: Problem) -> None:
    allowed = slack(problem) * magnitudes(problem)["errors"]
    assert (np.abs(cuda.errors(problem) - reference.errors(problem)) <= allowed).all()


@few
@given(problem=one_layer | stacks)
def test_value_and_gradients(problem: Problem) -> None:
    assert_right(problem)


@few
@given(data=st.data(), problem=one_layer)
def test_vector_jacobian_product(data: st.DataObject, problem: Problem) -> None:
    upstream = data.draw(upstreams(problem))
    assert_gradients(cuda.gradients(problem, upstream, Need.everything(problem)), problem, upstream)


@pytest.mark.parametrize("sampler", ["antithetic", "sobol"])
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_samplers_and_precisions(sampler: str, real: Any) -> None:
    draw = Draw(6, 11, sampler, datum_offset=3, sample_offset=2)
    assert_right(stack((3, 17, 70), 3, draw, real))


@pytest.mark.parametrize("n", [8, 7, 130])
@pytest.mark.parametrize("rows", [128, 256])
def test_chunks_begin_and_end_within_a_datum(n: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = stack((3, 11, 70), 1 + 600 // n, Draw(n, 5))
    whole = cuda.value_and_gradients(problem, Need.everything(problem))
    monkeypatch.setattr(layout, "BYTES_OF_A_CHUNK", 0)
    monkeypatch.setattr(layout, "FEWEST_ROWS", rows)
    layout_is_kept_by_kind()
    assert_right(problem)
    moments, _ = cuda.value_and_gradients(problem, Need.everything(problem))
    # a row's error does not depend on the chunk that it is in
    np.testing.assert_allclose(moments.mean, whole[0].mean, rtol=1e-14)


def layout_is_kept_by_kind() -> None:
    """Forget the plans that were made under other constants."""
    from mcelbo_kernels.cuda.plan import plan_of

    plan_of.cache_clear()


@pytest.fixture(autouse=True)
def _plans_of_each_test() -> None:
    layout_is_kept_by_kind()


def test_sums_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "LONGEST_SUM", 24)
    assert_right(stack((3, 40, 70), 9, Draw(20, 5)))


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_few_tiles_with_a_long_sum(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a hidden layer comes in parts, of which the last is short."""
    monkeypatch.setattr(layout, "SHORTEST_SUM", 24)
    problem = stack((3, 9, 90, 7), 4, Draw(3, 5), real)
    kind = layout.kind_of(problem, Need.everything(problem), False, False)
    assert [product and product.parts for product in plan.plan_of(kind).backward][1:] == [4, 1]
    assert_right(problem)


def test_the_large_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "ENOUGH_BLOCKS", 1)
    assert_right(stack((5, 37, 131), 3, Draw(50, 5)))


@pytest.mark.parametrize("widths", [(0, 7), (3, 0), (1, 1), (33, 65), (2, 129)])
def test_edges_of_tiles(widths: tuple[int, ...]) -> None:
    assert_right(stack(widths, 2, Draw(33, 5)))


NEEDS = {
    "posterior": Need(False, False, True, True, ((False, False), (False, False))),
    "last layer": Need(False, False, False, False, ((False, False), (True, True))),
    "first weight": Need(False, False, False, False, ((True, False), (False, False))),
    "biases": Need(False, False, False, False, ((False, True), (False, True))),
    "data": Need(True, False, False, False, ((False, False), (False, False))),
}


@pytest.mark.parametrize("name", NEEDS)
def test_only_what_is_needed(name: str) -> None:
    problem = stack((3, 17, 70), 3, Draw(6, 5))
    _, whole = cuda.value_and_gradients(problem, Need.everything(problem))
    _, found = cuda.value_and_gradients(problem, NEEDS[name])
    need = named(NEEDS[name])
    for key, array in named(found).items():
        assert need[key]
        np.testing.assert_array_equal(array, named(whole)[key])
    assert {key for key, needed in need.items() if needed} == set(named(found))


def test_slices_of_batch_and_samples_have_the_noise_of_the_whole() -> None:
    problem = stack((3, 17, 70), 4, Draw(12, 5, datum_offset=2**31, sample_offset=2**40))
    whole = cuda.errors(problem)
    part = replace(
        problem,
        x=problem.x[1:3],
        mu=problem.mu[1:3],
        logvar=problem.logvar[1:3],
        draw=replace(problem.draw, num_samples=5, datum_offset=2**31 + 1, sample_offset=2**40 + 3),
    )
    np.testing.assert_array_equal(cuda.errors(part), whole[1:3, 3:8])


def test_the_same_call_gives_the_same_bits() -> None:
    problem = stack((3, 17, 70), 3, Draw(20, 5))
    first, second = (cuda.value_and_gradients(problem, Need.everything(problem)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert_same(first[1], second[1])


def test_bad_numbers_show_where_they_belong_and_nowhere_else() -> None:
    problem = stack((3, 17, 70), 4, Draw(6, 5))
    x, mu = problem.x.copy(), problem.mu.copy()
    x[0, 69], mu[2, 1] = np.nan, np.inf
    spoilt = cuda.errors(replace(problem, x=x, mu=mu))
    finite = np.isfinite(reference.errors(replace(problem, x=x, mu=mu)))
    np.testing.assert_array_equal(np.isfinite(spoilt), finite)
    np.testing.assert_array_equal(spoilt[[1, 3]], cuda.errors(problem)[[1, 3]])


def test_a_weight_of_zero_excludes_what_is_not_a_number() -> None:
    weight = np.ones((1, 70), np.float32)
    weight[0, ::7] = 0
    problem = stack((3, 17, 70), 3, Draw(6, 5), weight=weight)
    x = problem.x.copy()
    x[:, ::7] = np.nan
    _, clean = cuda.value_and_gradients(problem, Need.everything(problem))
    _, found = cuda.value_and_gradients(replace(problem, x=x), Need.everything(problem))
    for name, array in named(found).items():
        if name != "weight":
            np.testing.assert_array_equal(array, named(clean)[name])


def test_the_cpu_computes_the_same() -> None:
    problem = stack((3, 17, 70), 3, Draw(20, 5))
    on_cpu, on_gpu = cpu.errors(problem), cuda.errors(problem)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-5)


def test_only_a_mean_has_moments() -> None:
    problem = stack((3, 7), 2, Draw(4, 5))
    given, target = (cuda.on_device(problem), Need.everything(problem), cuda.seed_of(problem)), cuda.Interpreter()
    weights = cuda.DeviceMemory(np.ones((2, 4), np.float32))
    for options, made in (({}, True), ({"upstream": weights}, False), ({"errors": target.empty(8, np.float32)}, False)):
        call = schedule.Call(*given, target, **options)
        assert {place is not None for place in (*call.moments, call.waiting.moments)} == {made}


def test_upstream_of_another_shape_is_refused() -> None:
    problem = stack((3, 7), 2, Draw(4, 5))
    with pytest.raises(ValueError, match=r"upstream has shape \(2, 3\)"):
        cuda.gradients(problem, np.ones((2, 3), np.float32), Need.everything(problem))
