"""The noise contract: published vectors, logical indices, and the normals' distribution."""

from __future__ import annotations

import doctest
import importlib
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from mcelbo_kernels.problem import SAMPLERS, Draw
from mcelbo_kernels.reference.noise import Real, noise, normal, philox, words
from tests.strategies import draws

SEED = 20_240_229  # of every statistical test; with it fixed they pass or fail for good
TOP = 2**32 - 1

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((TOP, TOP, TOP, TOP), (TOP, TOP), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox(counter, key)) == expected


def test_philox_takes_arrays_of_counters() -> None:
    counters = np.array([counter for counter, _, _ in KNOWN_ANSWERS], np.uint64)
    four = philox(tuple(counters.T), (0xA4093822, 0x299F31D0))
    assert tuple(word[2] for word in four) == KNOWN_ANSWERS[2][2]


@given(st.data(), st.integers(1, 3), st.integers(1, 9), st.integers(1, 3))
def test_word_is_that_of_its_counter(data: st.DataObject, batch: int, n: int, latent: int) -> None:
    draw = data.draw(draws(n, "iid"))
    drawn = words(draw, batch, latent)
    b, i, k = (data.draw(st.integers(0, size - 1)) for size in drawn.shape)
    sample = draw.sample_offset + i
    counter = (k, sample // 4 % 2**32, sample // 4 // 2**32, draw.datum_offset + b)
    assert drawn[b, i, k] == philox(counter, (draw.seed % 2**32, draw.seed // 2**32))[sample % 4]


def test_normal_over_the_whole_range() -> None:
    ends = np.concatenate([np.arange(1000), np.geomspace(1000, 2**31 - 1, 20_000).astype(np.int64)])
    word = np.concatenate([ends, 2**31 - 1 - ends]).astype(np.uint64)
    eps, p = normal(word), (2.0 * word + 1) / 2.0**33
    # scipy's and ours are each within 6e-16 of a 40-digit computation
    np.testing.assert_allclose(eps, special.ndtri(p), rtol=1.5e-15, atol=0)
    # and independently: Phi amplifies a relative error of its argument x by at most 1 + x^2
    cdf = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in eps])
    assert (np.abs(cdf / p - 1) < 8 * 2.0**-53 * (1 + eps**2)).all()


def test_normal_is_exactly_odd_finite_and_monotone() -> None:
    word = np.unique(np.concatenate([[0, TOP, 2**31 - 1, 2**31], np.linspace(0, TOP, 20_001)]).astype(np.uint64))
    eps = normal(word)
    np.testing.assert_array_equal(eps, -normal(np.uint64(TOP) - word))
    assert np.isfinite(eps).all()
    assert (np.diff(eps) > 0).all()
    assert eps[0] == pytest.approx(-6.3379, abs=1e-4)


@given(st.data(), st.sampled_from(SAMPLERS), st.integers(1, 6), st.integers(1, 7), st.integers(1, 4))
def test_slice_draws_what_the_whole_draws(
    data: st.DataObject, sampler: str, batch: int, pairs: int, latent: int
) -> None:
    draw = data.draw(draws(2 * pairs, sampler))
    whole = noise(draw, batch, latent)
    datum, first = data.draw(st.integers(0, batch - 1)), 2 * data.draw(st.integers(0, pairs - 1))
    first += sampler == "iid" and data.draw(st.booleans())
    part = replace(
        draw,
        num_samples=2 * pairs - first,
        datum_offset=draw.datum_offset + datum,
        sample_offset=draw.sample_offset + first,
    )
    np.testing.assert_array_equal(noise(part, batch - datum, latent), whole[datum:, first:])
    np.testing.assert_array_equal(noise(draw, batch, latent + 3)[:, :, :latent], whole)


@given(st.data(), st.integers(1, 20))
def test_antithetic_pairs(data: st.DataObject, pairs: int) -> None:
    draw = data.draw(draws(2 * pairs, "antithetic"))
    eps = noise(draw, 3, 2)
    np.testing.assert_array_equal(eps[:, ::2], noise(replace(draw, sampler="iid"), 3, 2)[:, ::2])
    np.testing.assert_array_equal(eps[:, 1::2], -eps[:, ::2])


def test_every_index_and_bit_of_the_seed_counts() -> None:
    seeds = [0, *(2**bit for bit in range(63))]
    eps = np.stack([noise(Draw(8, seed=seed, sample_offset=2**34 - 4), 3, 4) for seed in seeds])
    # 6,144 words, of which two agree by chance with probability 6144^2 / 2^33 = 0.4%
    assert len(np.unique(eps)) == eps.size


def test_injected_noise_is_returned_in_float64() -> None:
    eps = np.array([[[0.1], [np.nan]]], np.float32)
    drawn = noise(Draw(2, seed=5, eps=eps), 1, 1)
    assert drawn.dtype == np.float64
    np.testing.assert_array_equal(drawn, eps)


def test_refuses_what_a_draw_alone_cannot_see() -> None:
    with pytest.raises(ValueError, match=r"eps has shape \(1, 2, 1\): expected .* = \(1, 2, 3\)"):
        noise(Draw(2, eps=np.zeros((1, 2, 1))), 1, 3)
    with pytest.raises(ValueError, match=r"datum_offset is 4294967295 and the batch 2"):
        noise(Draw(2, datum_offset=TOP), 2, 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("batch", "latent"), [(0, 3), (2, 0), (0, 0)])
def test_empty(sampler: str, batch: int, latent: int) -> None:
    assert noise(Draw(2, sampler=sampler), batch, latent).shape == (batch, 2, latent)


@pytest.fixture(scope="module")
def eps() -> Real:
    """Return 400,000 normals."""
    return noise(Draw(500, seed=SEED), 40, 20)


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_moments(eps: Real, power: int) -> None:
    """Each is off by 5 standard errors with probability 6e-7."""
    moment = [1, 0, 1, 0, 3, 0, 15, 0, 105]  # E eps^p
    error = math.sqrt((moment[2 * power] - moment[power] ** 2) / eps.size)
    assert abs((eps**power).mean() - moment[power]) < 5 * error


def test_distribution(eps: Real) -> None:
    """Kolmogorov and Smirnov's test; false alarm with probability 1e-6."""
    assert stats.kstest(eps.ravel(), "norm").pvalue > 1e-6


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("lag", [1, 2, 3, 4])
def test_neighbours_are_uncorrelated(eps: Real, axis: int, lag: int, power: int) -> None:
    """Products of two independent standardised variables have variance 1; 24 tests, false alarm of each 6e-7."""
    along = np.moveaxis(eps, axis, 0)
    standard = along if power == 1 else (along**2 - 1) / math.sqrt(2)
    products = standard[lag:] * standard[:-lag]
    # products that share a factor are uncorrelated too, so their mean has variance 1 / size
    assert abs(products.mean()) < 5 / math.sqrt(products.size)


def test_examples() -> None:
    outcome = doctest.testmod(importlib.import_module("mcelbo_kernels.reference.noise"))
    assert outcome.attempted
    assert not outcome.failed
