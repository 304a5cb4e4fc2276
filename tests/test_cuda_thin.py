"""The CUDA pass over few latents, as the PTX that it compiles to, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcelbo_kernels import reference
from mcelbo_kernels.problem import Draw, Need
from tests import cuda_targets as cuda
from tests.bounds import magnitudes
from tests.strategies import laid_out
from tests.test_cuda_schedule import layout_is_kept_by_kind, stack
from tests.test_grid import assert_gradients, slack
from tests.torch_twin import named

layout = pytest.importorskip("mcelbo_kernels.cuda.layout")
thin = pytest.importorskip("mcelbo_kernels.cuda.thin")

PASSED = Need(False, False, True, True, ((True, True),))


@pytest.fixture(autouse=True)
def _plans_of_each_test() -> None:
    layout_is_kept_by_kind()


def assert_right(problem: Any) -> None:
    """Value and gradients, within the roundings of their terms."""
    n = problem.draw.num_samples
    moments, gradients = cuda.value_and_gradients(problem, PASSED)
    assert gradients.x is None
    assert_gradients(gradients, problem, np.full((len(problem.x), n), 1 / n))
    allowed = slack(problem) * magnitudes(problem)["errors"]
    assert (np.abs(moments.mean - reference.errors(problem).mean(1)) <= allowed.mean(1)).all()
    assert (np.abs(cuda.errors(problem) - reference.errors(problem)) <= allowed).all()


@settings(max_examples=15)
@given(batch=st.integers(1, 4), n=st.integers(1, 300), offset=st.integers(0, 9), seed=st.integers(0, 2**63 - 1))
def test_any_numbers_of_data_and_samples(batch: int, n: int, offset: int, seed: int) -> None:
    assert_right(stack((1, 70), batch, Draw(n, seed, sample_offset=offset)))


@pytest.mark.parametrize(("latent", "pixels"), [(2, 300), (3, 1), (8, 97)])
def test_latents_and_pixels(latent: int, pixels: int) -> None:
    assert_right(stack((latent, pixels), 3, Draw(23, 5)))


@pytest.mark.parametrize("sampler", ["antithetic", "sobol"])
def test_samplers(sampler: str) -> None:
    assert_right(stack((3, 70), 2, Draw(10, 5, sampler)))


def test_injected_noise_and_double_precision() -> None:
    eps = np.random.default_rng(1).standard_normal((2, 9, 3))
    assert_right(stack((3, 70), 2, Draw(9, eps=eps), np.float64))


@pytest.mark.parametrize("data", [1, 2])
def test_pixel_weights_and_upstream_gradients(data: int) -> None:
    weight = np.linspace(0, 2, 70 * data, dtype=np.float32).reshape(data, 70)
    weight[:, ::7] = 0
    problem = stack((3, 70), 2, Draw(9, 5), weight=weight)
    assert_right(problem)
    upstream = laid_out(np.linspace(-1, 1, 18, dtype=np.float32).reshape(2, 9), "strided")
    assert_gradients(cuda.gradients(problem, upstream, PASSED), problem, upstream)


def test_chunks_begin_and_end_within_a_datum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "BYTES_OF_A_CHUNK", 0)
    monkeypatch.setattr(layout, "FEWEST_ROWS", 128)
    assert_right(stack((1, 70), 3, Draw(203, 5)))


def test_an_excluded_pixel_may_be_anything() -> None:
    weight = np.ones((1, 70), np.float32)
    weight[0, ::7] = 0
    problem = stack((3, 70), 2, Draw(9, 5), weight=weight)
    clean = named(cuda.value_and_gradients(problem, PASSED)[1])
    problem.x[:, ::7] = np.nan
    for name, array in named(cuda.value_and_gradients(problem, PASSED)[1]).items():
        np.testing.assert_array_equal(array, clean[name])


def test_a_bad_latent_spoils_its_datum_alone() -> None:
    problem = stack((3, 70), 3, Draw(9, 5))
    problem.mu[1, 2] = np.inf
    errors = cuda.errors(problem)
    np.testing.assert_array_equal(np.isfinite(errors), np.isfinite(reference.errors(problem)))


@pytest.mark.parametrize("pixels", [1, 96, 784, 3072, 100_003])
@pytest.mark.parametrize("latent", [1, 8])
def test_a_block_covers_the_pixels_with_little_waste(pixels: int, latent: int) -> None:
    columns, threads = thin.shape_for(pixels, latent)
    tiles = -(-pixels // (columns * threads))
    assert threads % 32 == 0
    assert pixels <= tiles * columns * threads <= max(96, 1.25 * pixels)
