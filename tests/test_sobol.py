"""Sobol points: digits, nets and scrambles; that the kernels draw the reference's words is tested with the noise."""

from __future__ import annotations

import doctest
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from scipy import stats
from scipy.stats import qmc

from mcelbo.sobol import BITS, directions
from mcelbo_kernels import cpu
from mcelbo_kernels.numerics import sobol
from mcelbo_kernels.numerics.sampling import sobol_word
from mcelbo_kernels.numerics.sobol import scipy_directions, table_of
from mcelbo_kernels.problem import Draw
from mcelbo_kernels.reference.noise import Words, owen_scrambled, reversed_bits, sobol_points, sobol_words
from tests.plain_philox import plain_word

ALARM = 2 * stats.norm.sf(5)  # of each statistical test below, once in 1.7 million seeds


@njit
def one_word(seed, table, b, i, k):
    return sobol_word(seed, table, b, i, k)


@given(seed=st.integers(0, 2**63 - 1), b=st.integers(0, 2**32 - 1), i=st.integers(0, 2**32 - 1), k=st.integers(0, 40))
def test_a_word_alone_is_that_of_plain_integers(seed: int, b: int, i: int, k: int) -> None:
    numbers = scipy_directions(41)
    found = one_word(*map(np.uint64, (seed,)), table_of(numbers), *map(np.uint64, (b, i, k)))
    assert found == plain_word("sobol", seed, b, i, k, numbers[k].tolist())


def test_points_are_those_of_scipy_and_torch() -> None:
    points = sobol_points(scipy_directions(50), np.arange(512, dtype=np.uint64)) / 2.0**32
    np.testing.assert_array_equal(points, qmc.Sobol(50, scramble=False, bits=32).random(512))
    numbers = directions("sobol", 50)
    assert numbers is not None
    # torch has the same table, cut off
    np.testing.assert_array_equal(numbers, scipy_directions(50)[:, :BITS])


def test_torchs_direction_numbers_draw_the_same_points() -> None:
    whole, cut = (Draw(300, 5, "sobol", sample_offset=2**30 - 300, directions=n(9)) for n in (scipy_directions, torchs))
    np.testing.assert_array_equal(cpu.noise(whole, 2, 9, np.float32), cpu.noise(cut, 2, 9, np.float32))


def torchs(latent: int) -> np.ndarray | None:
    return directions("sobol", latent)


@given(st.integers(0, 2**32 - 1))
def test_the_table_is_in_reversed_bits(number: int) -> None:
    table = table_of(np.array([[number, 1]], np.uint32))
    assert table.tolist() == [[int(f"{number:032b}"[::-1], 2)], [2**31]]
    assert reversed_bits(np.array([number], np.uint64))[0] == table[0, 0]


@pytest.fixture(scope="module")
def words() -> Words:
    """Return the words of 40 data, 1,024 points, 30 latents."""
    return sobol_words(Draw(1024, seed=12, sampler="sobol"), 40, 30)


@pytest.mark.parametrize("exponent", [0, 1, 4, 7, 10])
def test_every_interval_holds_one_of_the_first_points(words: Words, exponent: int) -> None:
    n = 2**exponent
    for first in range(0, 1024, n):
        cells = words[:, first : first + n] >> np.uint64(32 - exponent)
        np.testing.assert_array_equal(np.sort(cells, axis=1), np.broadcast_to(np.arange(n)[:, None], cells.shape))


@pytest.mark.parametrize("split", range(9))
def test_two_latents_fill_every_elementary_rectangle_once(words: Words, split: int) -> None:
    for first in range(0, 1024, 256):
        points = words[:, first : first + 256, :2]
        cell = (points[..., 0] >> np.uint64(32 - split) << np.uint64(8 - split)) | (
            points[..., 1] >> np.uint64(24 + split)
        )
        np.testing.assert_array_equal(np.sort(cell, axis=1), np.broadcast_to(np.arange(256), cell.shape))


def test_the_hash_keeps_common_leading_bits_and_only_these() -> None:
    rng = np.random.default_rng(0)
    point, seed = rng.integers(0, 2**32, (2, 10_000), np.uint64)
    for bit in range(32):
        flipped = owen_scrambled(point ^ np.uint64(1 << bit), seed) ^ owen_scrambled(point, seed)
        assert (flipped >> np.uint64(bit) == 1).all()


def test_strata_are_scrambled_independently() -> None:
    """Of one digit, the flips in the strata of the digits above are independent fair coins."""
    seed = np.random.default_rng(1).integers(0, 2**32, 100_000, np.uint64)
    for depth in (1, 2, 3):
        strata = np.arange(2**depth, dtype=np.uint64) << np.uint64(32 - depth)
        digit = owen_scrambled(strata[:, None], seed) >> np.uint64(31 - depth) & np.uint64(1)
        coins = 2.0 * digit - 1
        products = coins @ coins.T / seed.size - np.eye(2**depth)
        assert np.abs(coins.mean(axis=1)).max() <= 5 / math.sqrt(seed.size)
        assert np.abs(products).max() <= 5 / math.sqrt(seed.size)


@pytest.mark.parametrize("i", [0, 1, 1000, 2**32 - 1])
def test_each_point_alone_is_uniform_and_independent_of_other_data_and_latents(i: int) -> None:
    u = sobol_words(Draw(1, seed=3, sampler="sobol", sample_offset=i), 300, 300)[:, 0] / 2.0**32
    assert stats.kstest(u.ravel(), "uniform").pvalue > ALARM
    score = math.sqrt(12) * (u - 0.5)
    for axis in (0, 1):
        for lag in (1, 2, 3):
            products = np.take(score, range(300 - lag), axis) * np.take(score, range(lag, 300), axis)
            assert abs(products.mean()) <= 5 / math.sqrt(products.size)


def test_seeds_are_independent() -> None:
    one, other = (sobol_words(Draw(1, seed=s, sampler="sobol"), 300, 300) / 2.0**32 - 0.5 for s in (3, 4))
    assert abs(np.mean(12 * one * other)) <= 5 / 300


@pytest.mark.parametrize("offset", [0, 3 * 4096])
def test_errors_of_a_smooth_integral_fall_faster_than_one_over_n(offset: int) -> None:
    """Of E sigmoid(e_1 + 0.7 e_2) = 1/2, from 256 scrambles; the slope's own standard error is 0.015."""
    errors = []
    for n in (64, 4096):
        eps = cpu.noise(Draw(n, seed=1, sampler="sobol", sample_offset=offset), 256, 2, np.float64)
        means = (1 / (1 + np.exp(-(eps @ [1, 0.7])))).mean(axis=1)
        errors.append(np.sqrt(np.mean((means - 0.5) ** 2)))
    assert math.log(errors[1] / errors[0]) / math.log(64) < -1.05


def test_what_the_table_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"has 21202 latents: .* for 21201"):
        cpu.noise(Draw(1, sampler="sobol"), 1, 21202, np.float32)
    few = Draw(1, sampler="sobol", directions=scipy_directions(2))
    with pytest.raises(ValueError, match="directions are for 2 latents: expected at least 3"):
        cpu.noise(few, 1, 3, np.float32)
    monkeypatch.setitem(sys.modules, "scipy.stats.qmc", None)
    with pytest.raises(ImportError, match=r"install SciPy, or give them as Draw\(directions=\.\.\.\)"):
        cpu.noise(Draw(1, sampler="sobol"), 1, 3, np.float32)


def test_example() -> None:
    assert doctest.testmod(sobol).failed == 0
