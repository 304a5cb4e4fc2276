"""Philox4x32-10: the published vectors, plain Python integers for any counter and key, and a sample's own word."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from mcelbo_kernels.numerics import philox as module
from mcelbo_kernels.numerics.philox import philox
from mcelbo_kernels.numerics.sampling import word
from tests.plain_philox import plain_philox, plain_word

TOP = 2**32 - 1
WORDS = st.integers(0, TOP)

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, words
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((TOP, TOP, TOP, TOP), (TOP, TOP), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def compiled(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(philox(*(np.uint64(word) for word in (*counter, *key))))


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    assert compiled(counter, key) == words
    assert plain_philox(counter, key) == words


@given(st.tuples(WORDS, WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS))
def test_equals_plain_integers(counter: tuple[int, ...], key: tuple[int, ...]) -> None:
    assert compiled(counter, key) == plain_philox(counter, key)


@njit
def one_word(seed, antithetic, b, i, k):
    return word(seed, antithetic, b, i, k)


@given(st.sampled_from(["iid", "antithetic"]), st.integers(0, 2**63 - 1), WORDS, st.integers(0, 2**63 - 1), WORDS)
def test_a_word_alone_is_that_of_plain_integers(sampler: str, seed: int, b: int, i: int, k: int) -> None:
    found = one_word(np.uint64(seed), sampler == "antithetic", *map(np.uint64, (b, i, k)))
    assert found == plain_word(sampler, seed, b, i, k)


def test_example() -> None:
    assert doctest.testmod(module).failed == 0
