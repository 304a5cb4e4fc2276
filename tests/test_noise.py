"""The noise contract on the CPU: a pure function of logical indices, equal to the reference, and normal."""

from __future__ import annotations

import doctest
import importlib
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from scipy import stats

from mcelbo_kernels import reference
from mcelbo_kernels.cpu import noise
from mcelbo_kernels.cpu.noise import fill, key_of
from mcelbo_kernels.cpu.pieces import PLACES
from mcelbo_kernels.numerics.sobol import scipy_directions
from mcelbo_kernels.problem import SAMPLERS, Draw
from tests.plain_philox import plain_word
from tests.strategies import draws
from tests.test_normal import normals

DTYPES = [np.float32, np.float64]
ROUNDING = {np.float32: 2.0**-22, np.float64: 1e-14}  # 2 ulp are 2^-22 at most; the contract of float64
LATENTS = st.sampled_from([1, 2, 5, 7, 8, 9, 20, 33, PLACES - 1, PLACES, PLACES + 1, 2 * PLACES + 9])
COUNTS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 11, 37])


def any_draw(sampler: str) -> st.SearchStrategy[Draw]:
    pairs = 2 if sampler == "antithetic" else 1
    return COUNTS.flatmap(lambda count: draws(pairs * count, sampler))


ANY_DRAW = st.sampled_from(SAMPLERS).flatmap(any_draw)


@given(ANY_DRAW, st.integers(0, 3), LATENTS, st.data())
def test_words_are_those_of_plain_integers(draw: Draw, batch: int, latent: int, data: st.DataObject) -> None:
    values = {dtype: noise(draw, batch, latent, dtype) for dtype in DTYPES}
    for dtype, eps in values.items():
        assert eps.dtype == dtype
        assert eps.shape == (batch, draw.num_samples, latent)
        if eps.size:
            b, i, k = (data.draw(st.integers(0, size - 1)) for size in eps.shape)
            numbers = scipy_directions(k + 1)[k].tolist() if draw.sampler == "sobol" else []
            word = plain_word(draw.sampler, draw.seed, draw.datum_offset + b, draw.sample_offset + i, k, numbers)
            assert eps[b, i, k] == normals([word], dtype)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@given(draw=ANY_DRAW, batch=st.integers(0, 3), latent=LATENTS)
def test_equals_the_reference(draw: Draw, batch: int, latent: int, dtype: type) -> None:
    expected = reference.noise(draw, batch, latent)
    assert (np.abs(noise(draw, batch, latent, dtype) - expected) <= ROUNDING[dtype] * np.abs(expected)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(draw=ANY_DRAW, latent=LATENTS, first=st.integers(0, 4), last=st.integers(0, 4))
def test_slicing_the_batch_changes_no_bit(draw: Draw, latent: int, first: int, last: int, dtype: type) -> None:
    whole = noise(draw, 4, latent, dtype)
    part = noise(replace(draw, datum_offset=draw.datum_offset + first), max(0, last - first), latent, dtype)
    np.testing.assert_array_equal(part, whole[first:last])


@pytest.mark.parametrize("dtype", DTYPES)
@given(draw=ANY_DRAW, latent=LATENTS, data=st.data())
def test_splitting_the_samples_changes_no_bit(draw: Draw, latent: int, data: st.DataObject, dtype: type) -> None:
    n = draw.num_samples
    whole = noise(draw, 1, latent, dtype)[0]
    begin = data.draw(st.integers(0, n - 1))
    count = data.draw(st.integers(1, n - begin))
    part = np.empty((count, latent), dtype)
    fill(key_of(draw, latent), 0, begin, count, part)
    np.testing.assert_array_equal(part, whole[begin : begin + count])


@pytest.mark.parametrize("dtype", DTYPES)
@given(draw=ANY_DRAW, latent=st.integers(2, 2 * PLACES))
def test_fewer_latents_change_no_bit(draw: Draw, latent: int, dtype: type) -> None:
    whole, part = (noise(draw, 1, size, dtype) for size in (latent, latent // 2))
    np.testing.assert_array_equal(part, whole[:, :, : latent // 2])


@njit
def fill_within(key, rows, out):
    fill(key, 1, 2, rows, out)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(rows=st.sampled_from([1, 2, 3, 5, 30, 131]), latent=LATENTS, gap=st.integers(0, 9))
def test_fill_called_from_a_kernel_leaves_all_else_alone(
    sampler: str, rows: int, latent: int, gap: int, dtype: type
) -> None:
    out = np.full((rows + 3, latent + gap), 7.0, dtype)
    key = key_of(Draw(2, seed=3, sampler=sampler, datum_offset=4, sample_offset=6), latent)
    fill_within(key, rows, out[1:, :latent])
    expected = noise(Draw(rows + rows % 2, seed=3, sampler=sampler, datum_offset=5, sample_offset=8), 1, latent, dtype)
    np.testing.assert_array_equal(out[1 : rows + 1, :latent], expected[0, :rows])
    assert (out[:, latent:] == 7).all()
    assert (out[[0, rows + 1, rows + 2]] == 7).all()


def test_the_last_samples_of_all_can_be_drawn() -> None:
    draw = Draw(3, seed=2, sample_offset=2**63 - 3)
    np.testing.assert_allclose(noise(draw, 1, 2, np.float64), reference.noise(draw, 1, 2), rtol=1e-14)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_block_number_may_pass_32_bits_anywhere(sampler: str) -> None:
    draw = Draw(64, seed=9, sampler=sampler, sample_offset=2**32 - 64 if sampler == "sobol" else 2**34 - 32)
    expected = reference.noise(draw, 1, 3)
    np.testing.assert_allclose(noise(draw, 1, 3, np.float64), expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_antithetic_pairs_cancel_exactly(dtype: type) -> None:
    draw = Draw(12, seed=5, sampler="antithetic", sample_offset=6)
    eps = noise(draw, 3, 17, dtype)
    np.testing.assert_array_equal(eps[:, 1::2], -eps[:, ::2])
    np.testing.assert_array_equal(eps[:, ::2], noise(replace(draw, sampler="iid"), 3, 17, dtype)[:, ::2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "latent"), [(0, 3), (2, 0), (0, 0)])
def test_zero_sizes(batch: int, latent: int, dtype: type) -> None:
    assert noise(Draw(4), batch, latent, dtype).shape == (batch, 4, latent)


@pytest.mark.parametrize("dtype", DTYPES)
def test_injected_noise_is_returned(dtype: type) -> None:
    eps = np.random.default_rng(0).normal(size=(2, 3, 4))
    injected = noise(Draw(3, eps=eps), 2, 4, dtype)
    assert injected.dtype == dtype
    np.testing.assert_array_equal(injected, eps.astype(dtype))


def test_injected_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eps has shape \(2, 3, 4\): expected .* = \(2, 3, 5\)"):
        noise(Draw(3, eps=np.zeros((2, 3, 4))), 2, 5, np.float32)


def test_data_beyond_32_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="exceed 2\\*\\*32 data"):
        noise(Draw(3, datum_offset=2**32 - 1), 2, 5, np.float32)


# Statistics of N = B n d draws at one fixed seed. Each is held to 5 standard errors of its known distribution, so each
# would fail for a right generator once in 1.7 million seeds.
BATCH, SAMPLES, LATENT = 16, 512, 64
ALARM = 2 * stats.norm.sf(5)


@pytest.fixture(scope="module", params=["wide", "narrow"])
def sample(request: pytest.FixtureRequest) -> np.ndarray:
    latent = LATENT if request.param == "wide" else 4
    return noise(Draw(SAMPLES * LATENT // latent, seed=11), BATCH, latent, np.float64)


def test_moments(sample: np.ndarray) -> None:
    # the variances of x, x^2, x^3 and x^4 for a normal x
    for power, (mean, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs(np.mean(sample**power) - mean) <= 5 * math.sqrt(variance / sample.size)


def test_distribution(sample: np.ndarray) -> None:
    assert stats.kstest(sample.ravel(), "norm").pvalue > ALARM


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("power", [1, 2])
def test_neighbours_are_uncorrelated(sample: np.ndarray, axis: int, power: int) -> None:
    # products of independent variables of mean 0 and variance 1
    score = sample if power == 1 else (sample**2 - 1) / math.sqrt(2)
    for lag in (1, 2, 3):
        size = sample.shape[axis] - lag
        product = np.take(score, range(size), axis) * np.take(score, range(lag, lag + size), axis)
        assert abs(product.mean()) <= 5 / math.sqrt(product.size)


@pytest.mark.parametrize("other", [10, 12, 11 + 2**32, 2**62 + 11])
def test_seeds_are_uncorrelated(sample: np.ndarray, other: int) -> None:
    batch, samples, latent = sample.shape
    product = sample * noise(Draw(samples, seed=other), batch, latent, np.float64)
    assert abs(product.mean()) <= 5 / math.sqrt(product.size)


def test_example() -> None:
    assert doctest.testmod(importlib.import_module("mcelbo_kernels.cpu.noise")).failed == 0
