"""The noise contract on CUDA, from the PTX that its kernels compile to: the CPU's words exactly, and its normals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from mcelbo_kernels import cpu
from mcelbo_kernels.problem import SAMPLERS, Draw
from mcelbo_kernels.reference.noise import normal, words
from tests.cuda_targets import Interpreter
from tests.strategies import draws

from mcelbo_kernels.cuda.noise import noise  # isort: skip

DTYPES = [np.float32, np.float64]
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
LATENTS = st.sampled_from([1, 2, 7, 33, 300])
COUNTS = st.sampled_from([1, 2, 3, 4, 5, 8, 10, 37])


def on_device(draw: Draw, batch: int, latent: int, dtype: Any) -> Any:
    """Return eps (B, n, d) as the kernel draws it, every number of which must have been written."""
    target = Interpreter()
    seed = target.upload(np.array([draw.seed]))
    # the seed comes from the device's memory alone
    memory = noise(replace(draw, seed=0), batch, latent, dtype, seed, target)
    assert memory.dtype == dtype
    assert memory.written.all()
    return memory.array.reshape(batch, draw.num_samples, latent)


def words_of(eps: Any) -> Any:
    """Return the words behind eps in float64: Phi(eps) 2^32 is half a word from the nearest others."""
    return np.floor(ndtr(eps) * 2.0**32).astype(np.uint64)


def any_draw(sampler: str) -> st.SearchStrategy[Draw]:
    """Draw seeds, offsets in blocks and not, and counts of which four divide some."""
    pairs = 2 if sampler == "antithetic" else 1
    return COUNTS.flatmap(lambda count: draws(pairs * count, sampler))


ANY_DRAW = st.sampled_from(SAMPLERS).flatmap(any_draw)
FAR = [
    *[Draw(8, 2**63 - 1, "iid", 2**32 - 3, first) for first in (2**32 - 64, 2**32 - 5, 2**62, 2**62 + 3, 2**63 - 8)],
    *[Draw(8, 2**62 + 5, "antithetic", 2**31, first) for first in (2**32 - 4, 2**34 - 2, 2**62 + 2, 2**63 - 8)],
    *[Draw(8, 2**63 - 1, "sobol", 2**32 - 3, first) for first in (2**28 - 3, 2**31 - 4, 2**32 - 64, 2**32 - 8)],
]


@given(ANY_DRAW, st.integers(1, 3), LATENTS)
def test_float64_has_the_words_of_the_contract_and_its_accuracy(draw: Draw, batch: int, latent: int) -> None:
    ours, exact = on_device(draw, batch, latent, np.float64), words(draw, batch, latent)
    np.testing.assert_array_equal(words_of(ours), exact)
    np.testing.assert_allclose(ours, normal(exact), rtol=1e-14)
    np.testing.assert_allclose(ours, cpu.noise(draw, batch, latent, np.float64), rtol=1e-14)


@pytest.mark.parametrize("draw", FAR, ids=str)
def test_words_far_out(draw: Draw) -> None:
    np.testing.assert_array_equal(words_of(on_device(draw, 3, 5, np.float64)), words(draw, 3, 5))


@given(ANY_DRAW, st.integers(1, 3), LATENTS)
def test_float32_is_the_cpu_s_to_two_ulp(draw: Draw, batch: int, latent: int) -> None:
    ours, theirs = on_device(draw, batch, latent, np.float32), cpu.noise(draw, batch, latent, np.float32)
    assert (np.abs(ours - theirs) <= 2 * np.spacing(np.abs(theirs))).all()
    exact = normal(words(draw, batch, latent))
    assert (np.abs(ours - exact) <= 2.0**-22 * np.abs(exact)).all()


@by_dtype
@by_sampler
def test_rows_in_blocks_are_those_drawn_one_by_one(sampler: str, dtype: Any) -> None:
    whole, ragged = Draw(8, 7, sampler, 3, 12), Draw(10, 7, sampler, 3, 10)
    np.testing.assert_array_equal(on_device(ragged, 2, 9, dtype)[:, 2:], on_device(whole, 2, 9, dtype))


@by_dtype
def test_a_later_datum_is_that_of_the_whole_batch(dtype: Any) -> None:
    draw = Draw(6, 5, "antithetic")
    whole = on_device(draw, 3, 11, dtype)
    np.testing.assert_array_equal(on_device(replace(draw, datum_offset=2), 1, 11, dtype), whole[2:])
    np.testing.assert_array_equal(whole[:, 1::2], -whole[:, ::2])


def test_direction_numbers_of_the_caller() -> None:
    directions = np.random.default_rng(0).integers(0, 2**32, (4, 7), np.uint32)
    draw = Draw(12, 9, "sobol", 0, 100, directions=directions)
    np.testing.assert_array_equal(words_of(on_device(draw, 2, 3, np.float64)), words(draw, 2, 3))
    with pytest.raises(ValueError, match="directions are for 4 latents: expected at least 5"):
        on_device(draw, 2, 5, np.float64)


@by_dtype
@pytest.mark.parametrize(("batch", "latent"), [(0, 3), (2, 0), (0, 0)])
def test_zero_sizes(batch: int, latent: int, dtype: Any) -> None:
    assert on_device(Draw(4), batch, latent, dtype).shape == (batch, 4, latent)
