"""The noise as torch tensors: what it depends on, and what bad input gets. Its numbers are tested with the kernels."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mcelbo
from mcelbo.arguments import Arguments, prepare
from mcelbo.sampling import draw
from mcelbo_kernels import reference
from mcelbo_kernels.problem import SAMPLERS, Draw


@given(
    seed=st.integers(0, 2**63 - 1),
    sampler=st.sampled_from(SAMPLERS),
    datum_offset=st.integers(0, 2**32 - 8),
    sample_offset=st.integers(0, 2**29 - 2).map(lambda half: 2 * half),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_noise_is_the_references(
    seed: int, sampler: str, datum_offset: int, sample_offset: int, dtype: torch.dtype
) -> None:
    settings = {"sampler": sampler, "datum_offset": datum_offset, "sample_offset": sample_offset}
    eps = mcelbo.noise(seed, 3, 4, 2, dtype=dtype, **settings)  # type: ignore[arg-type]
    assert eps.dtype == dtype
    expected = torch.from_numpy(reference.noise(Draw(4, seed, **settings), 3, 2))  # type: ignore[arg-type]
    # a few units in the last place of float32; float64 is held to 1e-12
    tolerance = 4 * torch.finfo(dtype).eps if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(eps.double(), expected, rtol=tolerance, atol=0.0)
    assert torch.equal(eps, mcelbo.noise(torch.tensor(seed), 3, 4, 2, dtype=dtype, **settings))  # type: ignore[arg-type]


def arguments(sampler: str, **changes: Any) -> Arguments:
    mu = torch.zeros(3, 2)
    settings: dict[str, Any] = {"seed": 5, "datum_offset": 1, "sample_offset": 2} | changes
    return prepare(torch.zeros(3, 4), mu, mu, num_samples=10, sampler=sampler, **settings)


@given(sampler=st.sampled_from(SAMPLERS), first=st.integers(0, 9), data=st.data())
def test_any_run_of_a_calls_samples_can_be_drawn(sampler: str, first: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 10 - first))
    whole = mcelbo.noise(5, 3, 10, 2, sampler=sampler, datum_offset=1, sample_offset=2)
    assert torch.equal(draw(arguments(sampler), first, count), whole[:, first : first + count])


def test_injected_noise_is_drawn_as_it_is() -> None:
    eps = torch.randn(3, 10, 2)
    injected = arguments("iid", eps=eps, seed=None)
    assert torch.equal(draw(injected, 3, 4), eps[:, 3:7])
    assert draw(replace(injected, eps=None), 3, 4).dtype == torch.float32


def test_the_defaults_are_torchs() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert mcelbo.noise(1, 1, 1, 1).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert mcelbo.noise(1, 1, 1, 1, device="cpu").device == torch.device("cpu")
    assert mcelbo.noise(1, 0, 3, 2).shape == (0, 3, 2)
    assert mcelbo.noise(1, 2, 3, 0).shape == (2, 3, 0)


def test_the_noise_of_the_last_datum_can_be_drawn() -> None:
    last = mcelbo.noise(1, 1, 3, 2, datum_offset=2**32 - 1)
    assert torch.equal(mcelbo.noise(1, 2, 3, 2, datum_offset=2**32 - 2)[1:], last)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"seed": -1}, ValueError, "seed is -1: expected 0 <= seed < 2**63"),
    ({"seed": 1.5}, TypeError, "seed is 1.5, float: expected an integer"),
    ({"seed": None}, TypeError, "seed is None, NoneType: expected an integer"),
    ({"seed": torch.zeros(2)}, TypeError, "seed is a tensor of torch.float32 and shape (2,): expected a 0-d int64"),
    ({"batch": -1}, ValueError, "batch is -1: expected at least 0"),
    ({"batch": 2.0}, TypeError, "batch is 2.0, float: expected an integer"),
    ({"latent": -1}, ValueError, "latent is -1: expected at least 0"),
    ({"num_samples": 0}, ValueError, "num_samples is 0: expected at least 1"),
    ({"num_samples": 3, "sampler": "antithetic"}, ValueError, "so both must be even"),
    ({"sampler": "halton"}, ValueError, "sampler is 'halton': expected one of 'iid', 'antithetic', 'sobol'"),
    ({"sampler": "sobol", "latent": 21202}, ValueError, "latents: sampler='sobol' has direction numbers for 21201"),
    (
        {"sampler": "sobol", "sample_offset": 2**30 - 3},
        ValueError,
        "sample_offset is 1073741821 and num_samples 4: sampler='sobol' has 2**30 points in all",
    ),
    ({"datum_offset": 2**32 - 1}, ValueError, "datum_offset is 4294967295 and the batch 2: together they exceed"),
    ({"dtype": torch.float16}, TypeError, "dtype is torch.float16: expected torch.float32 or torch.float64"),
    ({"seed": torch.tensor(1, device="meta"), "device": "cpu"}, ValueError, "seed is on meta and the noise on cpu"),
    ({"device": "meta"}, ValueError, "device is meta, which holds no data"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"seed": 1, "batch": 2, "num_samples": 4, "latent": 2} | changes
    with pytest.raises(error, match=re.escape(message)):
        mcelbo.noise(**given)
