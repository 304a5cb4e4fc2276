"""The inverse normal CDF of words: its error, its order and its symmetry."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtri

from mcelbo_kernels.numerics.normal import HALF_BITS_32, normal_float32, normal_float64

TOP = 2**32 - 1
EXTREME = np.array([0, 1, 2**31 - 1, 2**31, TOP - 1, TOP], np.uint32)
STRETCH = 20_000

# Words from the end at which 4p(1 - p) crosses half a power of two and a little, and its logarithm's exponent changes;
# in float64, at which p crosses sqrt(1/2) times a power of two.
LOWEST = float(np.uint32(HALF_BITS_32).view(np.float32))
OCTAVES_32 = [int(2**31 * (1 - math.sqrt(1 - LOWEST * 2.0**-e))) for e in range(33)]
OCTAVES_64 = [int(math.sqrt(0.5) * 2.0 ** (31 - e)) for e in range(32)]
# The centre of AS241 ends where |u - 1/2| = 0.425.
SWITCHES = [0, *OCTAVES_32, *OCTAVES_64, int(0.075 * 2**32), 2**31]


@njit(error_model="numpy")
def over32(words, out):
    for i in range(words.size):
        out[i] = normal_float32(words[i])


@njit(error_model="numpy")
def over64(words, out):
    for i in range(words.size):
        out[i] = normal_float64(words[i])


@njit(error_model="numpy")
def descents(begin, end):
    """Count the words from begin + 1 to end - 1 whose normal is below that of the word before."""
    count, before = 0, normal_float32(np.uint32(begin))
    for word in range(begin + 1, end):
        eps = normal_float32(np.uint32(word))
        count += eps < before
        before = eps
    return count


def normals(words: Any, dtype: type) -> NDArray[Any]:
    words = np.asarray(words, np.uint32)
    out = np.empty(words.shape, dtype)
    (over32 if dtype is np.float32 else over64)(words, out)
    return out


def exact(words: NDArray[Any]) -> NDArray[np.float64]:
    """Phi^-1 from the distance to the nearer end, which float64 holds exactly."""
    distance = np.minimum(words, TOP - words).astype(np.float64)
    return np.where(words < 2**31, 1, -1) * ndtri((distance + 0.5) * 2.0**-32)


def stretches() -> list[NDArray[np.int64]]:
    """Runs of consecutive words around every switch, on both sides of the centre, and in twenty other places."""
    centres = [*SWITCHES, *(TOP - switch for switch in SWITCHES)]
    centres += np.random.default_rng(1).integers(0, 2**32, 20).tolist()
    runs = (np.arange(centre - STRETCH // 2, centre + STRETCH // 2) for centre in centres)
    return [run[(run >= 0) & (run <= TOP)] for run in runs]


def everywhere() -> NDArray[np.int64]:
    """The stretches, a million words at random and more at random orders of magnitude from the ends and the centre."""
    generator = np.random.default_rng(2)
    uniform = generator.integers(0, 2**32, 10**6)
    small = np.exp2(generator.uniform(0, 31, 10**6)).astype(np.int64)
    return np.concatenate([*stretches(), uniform, small, 2**31 - small, 2**31 + small - 1, TOP - small])


def test_float32_is_within_two_ulp() -> None:
    words = everywhere()
    expected = exact(words)
    ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    errors = np.abs(normals(words, np.float32) - expected) / ulp
    assert errors.max() <= 2
    assert np.sqrt(np.mean(errors**2)) <= 0.5


def test_float64_is_within_its_contract() -> None:
    words = everywhere()
    expected = exact(words)
    assert (np.abs(normals(words, np.float64) - expected) <= 1e-14 * np.abs(expected)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_never_descends(dtype: type) -> None:
    for run in stretches():
        assert (np.diff(normals(run, dtype)) >= 0).all()
    first = np.random.default_rng(3).integers(0, TOP, 10**6)
    assert (normals(first + 1, dtype) >= normals(first, dtype)).all()


@given(st.integers(0, TOP), st.integers(0, TOP))
def test_keeps_the_order_of_words(one: int, other: int) -> None:
    words = sorted((one, other))
    for dtype in (np.float32, np.float64):
        low, high = normals(words, dtype)
        assert low <= high


@pytest.mark.slow
def test_float32_never_descends_anywhere() -> None:
    """Half of the words: the other half is theirs with the sign turned."""
    assert descents(0, 2**31 + 1) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_is_odd_to_the_bit(dtype: type) -> None:
    words = everywhere()
    bits = normals(words, dtype).view(f"u{np.dtype(dtype).itemsize}")
    mirrored = (-normals(TOP - words, dtype)).view(bits.dtype)
    np.testing.assert_array_equal(bits, mirrored)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_words_are_finite(dtype: type) -> None:
    values = normals(EXTREME, dtype)
    # Phi^-1(2^-33), and half a step from the centre, sqrt(2 pi) 2^-33
    np.testing.assert_allclose(values[0], NormalDist().inv_cdf(2.0**-33), rtol=1e-6)
    np.testing.assert_allclose(values[3], math.sqrt(2 * math.pi) * 2.0**-33, rtol=1e-6)
    assert np.isfinite(values).all()
    assert (np.diff(values) > 0).all()


# The moments of Phi^-1 over equally spaced words are integrals known to be 0, 1, 0 and 3: no chance is involved. The
# midpoint rule over 2^20 cells misses the tails beyond 2^-21: less than 1e-4 of the fourth moment.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_over_the_range(dtype: type) -> None:
    values = np.float64(normals((np.arange(2**20) << 12) + 2**11, dtype))
    moments = [np.mean(values**power) for power in range(1, 5)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=1e-3)
