"""What bad input gets: an error that names the argument, what came and what was expected."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mcelbo
from mcelbo.arguments import check_tensor, prepare, seed_tensor

B, D, SHAPE, M = 3, 2, (1, 2, 4), 8


def data(**changes: Any) -> dict[str, Any]:
    """A call that is right but for the changes."""
    given: dict[str, Any] = {"x": torch.rand(B, *SHAPE), "mu": torch.zeros(B, D), "logvar": torch.zeros(B, D)}
    return given | {"num_samples": 4} | changes


def sparse(*shape: int) -> Tensor:
    return torch.zeros(shape).to_sparse()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    # tensors of the wrong kind
    ({"x": np.zeros((B, M), np.float32)}, TypeError, "x is numpy.ndarray: expected a torch.Tensor"),
    ({"mu": None}, TypeError, "mu is NoneType: expected a torch.Tensor"),
    ({"weight": 1.0}, TypeError, "weight is float: expected a torch.Tensor"),
    (
        {"x": torch.zeros(B, *SHAPE, dtype=torch.uint8)},
        TypeError,
        "x is torch.uint8: expected float32 or float64; images are usually x.float() / 255",
    ),
    ({"mu": torch.zeros(B, D, dtype=torch.int64)}, TypeError, "mu is torch.int64: expected float32 or float64"),
    ({"logvar": torch.zeros(B, D, dtype=torch.complex64)}, TypeError, "logvar is torch.complex64: expected float32 or"),
    (
        {"weight": torch.ones(B, *SHAPE, dtype=torch.bool)},
        TypeError,
        "weight is torch.bool: expected float32 or float64; a mask is usually mask.to(x.dtype)",
    ),
    ({"x": sparse(B, M)}, TypeError, "x is sparse (torch.sparse_coo): expected a dense tensor"),
    ({"eps": sparse(B, 4, D)}, TypeError, "eps is sparse (torch.sparse_coo): expected a dense tensor"),
    ({"mu": torch.zeros(B, D, device="meta")}, ValueError, "mu is on the meta device, which holds no data: expected"),
    ({"x": torch.zeros(B, M, device="meta")}, ValueError, "x is on the meta device, which holds no data: expected"),
    (
        {"mu": torch.zeros(B, D, dtype=torch.float64)},
        TypeError,
        "mu is torch.float64 and x torch.float32: expected one",
    ),
    (
        {"x": torch.zeros(B, M, dtype=torch.float16), "mu": torch.zeros(B, D, dtype=torch.float64)},
        TypeError,
        "mu is torch.float64 and x torch.float16: expected one dtype",
    ),
    # shapes
    ({"x": torch.rand(M)}, ValueError, "x has shape (8,): expected the batch first, then the pixels of a datum"),
    ({"mu": torch.zeros(D)}, ValueError, "mu has shape (2,): expected two dimensions, batch first"),
    ({"mu": torch.zeros(B, D, 1)}, ValueError, "mu has shape (3, 2, 1): expected two dimensions, batch first"),
    ({"logvar": torch.zeros(B, 1)}, ValueError, "logvar has shape (3, 1) but mu has shape (3, 2)"),
    ({"x": torch.rand(4, *SHAPE)}, ValueError, "x has a batch of 4 but mu has a batch of 3"),
    (
        {"x": torch.rand(B, 1, 2, 3)},
        ValueError,
        "decoder returns 8 pixels but x has shape (3, 1, 2, 3), 6 pixels per datum",
    ),
    (
        {"mu": torch.zeros(B, 5), "logvar": torch.zeros(B, 5)},
        ValueError,
        "layer 0 of the decoder takes 2 inputs but mu has 5",
    ),
    ({"weight": torch.ones(2, *SHAPE)}, ValueError, "weight has shape (2, 1, 2, 4): expected one that broadcasts to"),
    (
        {"weight": torch.ones(B, M)},
        ValueError,
        "weight has shape (3, 8): expected one that broadcasts to that of x, (3",
    ),
    (
        {"weight": torch.ones(1, B, *SHAPE)},
        ValueError,
        "weight has shape (1, 3, 1, 2, 4): expected one that broadcasts",
    ),
    (
        {"eps": torch.zeros(B, 3, D)},
        ValueError,
        "eps has shape (3, 3, 2): expected (batch, num_samples, latent) = (3, 4",
    ),
    # numbers and options
    ({"num_samples": 0}, ValueError, "num_samples is 0: expected at least 1"),
    ({"num_samples": True}, TypeError, "num_samples is True, bool: expected an integer"),
    ({"num_samples": 4.0}, TypeError, "num_samples is 4.0, float: expected an integer"),
    (
        {"num_samples": 3, "sampler": "antithetic"},
        ValueError,
        "num_samples is 3 and sample_offset 0: sampler='antithetic'",
    ),
    ({"sample_offset": 1, "sampler": "antithetic"}, ValueError, "draws pairs, so both must be even"),
    ({"sampler": "halton"}, ValueError, "sampler is 'halton': expected one of 'iid', 'antithetic', 'sobol'"),
    (
        {"reduction": "average"},
        ValueError,
        "reduction is 'average': expected one of 'none', 'sum', 'batchmean', 'mean'",
    ),
    ({"datum_offset": -1}, ValueError, "datum_offset is -1: expected 0 <= datum_offset < 2**32"),
    ({"datum_offset": 2**32 - 2}, ValueError, "datum_offset is 4294967294 and the batch 3: together they exceed 2**32"),
    ({"datum_offset": 1.0}, TypeError, "datum_offset is 1.0, float: expected an integer"),
    ({"sample_offset": -2}, ValueError, "sample_offset is -2 and num_samples 4: expected 0 <= sample_offset"),
    ({"sample_offset": 2**63 - 1}, ValueError, "at most 2**63 samples in all"),
    # the seed
    ({"seed": -1}, ValueError, "seed is -1: expected 0 <= seed < 2**63"),
    ({"seed": 2**63}, ValueError, "seed is 9223372036854775808: expected 0 <= seed < 2**63"),
    ({"seed": torch.tensor(-1)}, ValueError, "seed is -1: expected 0 <= seed < 2**63"),
    ({"seed": 1.0}, TypeError, "seed is 1.0, float: expected an integer"),
    (
        {"seed": torch.tensor([1])},
        TypeError,
        "seed is a tensor of torch.int64 and shape (1,): expected a 0-d int64 tensor",
    ),
    (
        {"seed": torch.tensor(1.0)},
        TypeError,
        "seed is a tensor of torch.float32 and shape (): expected a 0-d int64 tensor",
    ),
    (
        {"seed": torch.tensor(1, device="meta")},
        ValueError,
        "seed is on meta and the noise on cpu: move both to one device",
    ),
    ({"generator": 3}, TypeError, "generator is int: expected a torch.Generator"),
    ({"seed": 1, "generator": torch.Generator()}, ValueError, "seed and generator were both given"),
    ({"eps": torch.zeros(B, 4, D), "seed": 1}, ValueError, "eps was given together with seed or generator"),
    ({"eps": torch.zeros(B, 4, D), "generator": torch.Generator()}, ValueError, "eps was given together with seed or"),
    # the decoder
    ({"decoder": None}, TypeError, "decoder is NoneType: expected a torch module or another callable"),
    (
        {"decoder": nn.Linear(D, M, dtype=torch.float64)},
        TypeError,
        "weight of layer 0 of the decoder is torch.float64 and x torch.float32: expected one dtype",
    ),
    (
        {"decoder": nn.Linear(D, M, device="meta")},
        ValueError,
        "weight of layer 0 of the decoder is on meta and x on cpu: move both to one device",
    ),
    (
        {"decoder": nn.Sequential(nn.Linear(D, M), nn.Unflatten(1, (2, 4, 1)))},
        ValueError,
        "decoder returns data of shape (2, 4, 1) but x has shape (3, 1, 2, 4): expected (8,) or (1, 2, 4) per datum",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = data(decoder=nn.Linear(D, M)) | changes
    with pytest.raises(error, match=re.escape(message)):
        mcelbo.expected_squared_error(**arguments)


@pytest.mark.parametrize("name", ["x", "mu", "logvar", "decoder", "num_samples"])
def test_nothing_that_matters_has_a_default(name: str) -> None:
    arguments = data(decoder=nn.Linear(D, M))
    del arguments[name]
    with pytest.raises(TypeError, match=name):
        mcelbo.expected_squared_error(**arguments)


def test_devices_are_compared() -> None:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):  # the machine may lack the device
        x = torch.zeros(1, 1, device="cuda:0")
    with pytest.raises(ValueError, match="mu is on cpu and x on cuda:0: move both to one device"):
        check_tensor("mu", torch.zeros(1, 1), x)


@given(
    batch=st.integers(0, 3),
    pixels=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    keep=st.data(),
)
def test_a_weight_broadcasts_as_torch_does(batch: int, pixels: list[int], keep: st.DataObject) -> None:
    x = torch.zeros(batch, *pixels)
    full = tuple(x.shape)
    kept = keep.draw(st.lists(st.booleans(), min_size=len(full), max_size=len(full)))
    shape = tuple(size if own else 1 for size, own in zip(full, kept, strict=True))[
        keep.draw(st.integers(0, len(full))) :
    ]
    weight = torch.rand(shape)
    mu = torch.zeros(batch, 1)
    found = prepare(x, mu, mu, num_samples=1, weight=weight).weight
    assert found is not None
    assert found.shape[0] in (1, batch)
    assert torch.equal(found.expand(batch, x[:1].numel() if batch else found.shape[1]), weight.expand(full).flatten(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_gradients_are_cast_back(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    given = {name: t.to(dtype).requires_grad_() for name, t in data().items() if isinstance(t, Tensor)}
    weight = torch.rand(SHAPE).to(dtype).requires_grad_()
    decoder = nn.Linear(D, M, dtype=dtype)
    tensors = [*given.values(), weight, *decoder.parameters()]
    loss = mcelbo.expected_squared_error(**given, decoder=decoder, weight=weight, num_samples=4, seed=1)
    gradients = torch.autograd.grad(loss, tensors)
    wide = [t.detach().float().requires_grad_() for t in tensors]
    twin = nn.Linear(D, M)
    twin.weight, twin.bias = nn.Parameter(wide[4]), nn.Parameter(wide[5])
    x, mu, logvar, w = wide[:4]
    expected = mcelbo.expected_squared_error(x, mu, logvar, twin, weight=w, num_samples=4, seed=1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, [*wide[:4], *twin.parameters()]), strict=True):
        assert gradient.dtype == dtype
        assert torch.equal(gradient, wanted.to(dtype))


def test_the_seed_comes_from_the_generator_that_was_asked_for() -> None:
    torch.manual_seed(5)
    first, second = seed_tensor(None), seed_tensor(None)
    torch.manual_seed(5)
    assert first == seed_tensor(None)
    assert first != second
    assert first == seed_tensor(None, torch.Generator().manual_seed(5))
    assert seed_tensor(2**63 - 1) == seed_tensor(np.int64(2**63 - 1)) == torch.tensor(2**63 - 1)  # type: ignore[arg-type]


def test_injected_noise_leaves_the_generator_alone() -> None:
    arguments = data(decoder=nn.Linear(D, M), eps=torch.zeros(B, 4, D))
    state = torch.get_rng_state()
    mcelbo.expected_squared_error(**arguments)
    assert torch.equal(state, torch.get_rng_state())
    mcelbo.expected_squared_error(**(arguments | {"eps": None}))
    assert not torch.equal(state, torch.get_rng_state())
