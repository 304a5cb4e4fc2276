"""`study`: its values are those of the losses, its errors those that independent repetitions show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mcelbo
from mcelbo.moments import Stream

EPS = torch.finfo(torch.float64).eps


def data(batch: int = 5, pixels: int = 7, latent: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (pixels, latent, latent)
    x, mu, logvar = (torch.randn(batch, size, generator=generator, dtype=torch.float64) for size in sizes)
    return x, mu, logvar


def affine(latent: int = 3, pixels: int = 7, *more: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(latent, pixels), *more).double()


def mlp() -> nn.Sequential:
    return affine(3, 4, nn.ReLU(), nn.Linear(4, 7))


@given(st.integers(0, 2**63 - 1), st.sampled_from([1, 2, 7]), st.booleans(), st.sampled_from(["affine", "mlp"]))
def test_a_value_is_what_one_call_returns(seed: int, n: int, weighted: bool, kind: str) -> None:
    x, mu, logvar = data()
    decoder = affine() if kind == "affine" else mlp()
    weight = torch.arange(7, dtype=torch.float64) if weighted else None
    found = mcelbo.study(x, mu, logvar, decoder, num_samples=(n, 3), replications=2, seed=seed, weight=weight)
    for count, value in zip((n, 3), found.value, strict=True):
        call = mcelbo.expected_squared_error(x, mu, logvar, decoder, num_samples=count, seed=seed, weight=weight)
        # Positive terms in float64, summed in two orders.
        assert value == pytest.approx(call.item(), rel=1e3 * EPS)


@pytest.mark.parametrize("kind", ["affine", "mlp"])
def test_the_errors_are_those_of_the_repeated_calls(kind: str) -> None:
    x, mu, logvar = data()
    decoder, n, runs, most = affine() if kind == "affine" else mlp(), 6, 3, 10
    found = mcelbo.study(x, mu, logvar, decoder, num_samples=(n, most), replications=runs, seed=4)
    errors, gradients = [], []
    leaves = [mu.clone().requires_grad_(), logvar.clone().requires_grad_(), *decoder.parameters()]
    for count in (n, most):
        own = []
        for r in range(runs):
            draw = {"num_samples": count, "seed": 4, "datum_offset": r * len(x)}
            loss = mcelbo.expected_squared_error(x, *leaves[:2], decoder, **draw)
            own.append([gradient.flatten() for gradient in torch.autograd.grad(loss, leaves)])
            eps = mcelbo.noise(4, len(x), count, 3, datum_offset=r * len(x), dtype=torch.float64)
            with torch.no_grad():
                y = decoder(mu[:, None] + (logvar / 2).exp()[:, None] * eps)
                errors.append((x[:, None] - y).square().sum(2))
        gradients.append(own)
    each = torch.cat(errors[:runs], dim=1)
    standard_error = (each.var(1).sum() / n).sqrt() / x.numel()
    assert found.standard_error[0] == pytest.approx(standard_error.item(), rel=1e-9)
    for part, column in ((slice(2), found.posterior_gradient), (slice(2, None), found.decoder_gradient)):
        vectors, best = (torch.stack([torch.cat(run[part]) for run in own]) for own in gradients)
        deviation = vectors.var(0).sum().sqrt() / best.mean(0).norm()
        assert column[0] == pytest.approx(deviation.item(), rel=1e-9)


def test_the_standard_error_is_that_of_the_closed_form() -> None:
    # One affine layer:    Var T = 4 ||S W^T r||^2 + 2 tr A^2,    S = diag(sigma),  A = S W^T W S,  r = x - W mu - b
    x, mu, logvar = data()
    decoder, n = affine(), 4096
    weight, bias = (tensor.detach() for tensor in decoder.parameters())
    r = x - mu @ weight.T - bias
    scaled = weight * (logvar / 2).exp()[:, None]  # (B, m, d)
    a = scaled.mT @ scaled
    variance = 4 * (r[:, None] @ scaled).square().sum((1, 2)) + 2 * a.square().sum((1, 2))
    expected = math.sqrt(float(variance.sum()) / n) / x.numel()
    found = mcelbo.study(x, mu, logvar, decoder, num_samples=(n,), replications=8, seed=0)
    # T is a quadratic form of normals, whose kurtosis is at most 15 (that of a chi-square with one degree of freedom):
    # the relative variance of N samples' variance is at most 14 / N. A square root halves 5 standard errors of that;
    # the false-alarm rate is below 1 in 10^6.
    tolerance = 5 / 2 * math.sqrt(14 / (8 * n))
    assert found.standard_error[0] == pytest.approx(expected, rel=tolerance)


def test_antithetic_pairs_cancel_what_is_linear() -> None:
    # Around mu, T is linear in sigma eps, and pairs leave the quadratic term alone: smaller by about sigma = 0.0025.
    x, mu, _ = data()
    small = torch.full_like(mu, -12.0)
    paired, plain = (
        mcelbo.study(x, mu, small, mlp(), num_samples=(2, 16), sampler=sampler, seed=0)
        for sampler in ("antithetic", "iid")
    )
    assert (paired.standard_error < plain.standard_error / 20).all()
    assert (paired.posterior_gradient < plain.posterior_gradient / 20).all()


def test_callers_and_their_gradients_are_left_alone() -> None:
    x, mu, logvar = data()
    decoder = mlp()
    hidden = torch.ones(3, dtype=torch.float64, requires_grad=True)
    state = torch.get_rng_state()
    with torch.no_grad():
        found = mcelbo.study(x.requires_grad_(), mu * hidden, logvar, decoder, num_samples=(2,), seed=0)
        assert not torch.is_grad_enabled()
    assert np.isfinite(found.decoder_gradient).all()
    assert torch.equal(state, torch.get_rng_state())
    assert all(tensor.grad is None for tensor in (x, hidden, *decoder.parameters()))


def test_inference_mode_does_not_matter() -> None:
    decoder = mlp()
    plain = mcelbo.study(*data(), decoder, num_samples=(2,), seed=0)
    with torch.inference_mode():
        inference = mcelbo.study(*(tensor.clone() for tensor in data()), decoder, num_samples=(2,), seed=0)
    assert str(inference) == str(plain)


def test_a_closure_s_own_tensors_are_its_parameters() -> None:
    decoder = mlp()
    module = mcelbo.study(*data(), decoder, num_samples=(4,), seed=0)
    closure = mcelbo.study(*data(), lambda z: decoder(z), num_samples=(4,), seed=0)
    assert closure.decoder_gradient == pytest.approx(module.decoder_gradient, rel=1e-9)


def test_a_decoder_without_parameters_has_no_gradient() -> None:
    found = mcelbo.study(*data(3, 3), torch.sin, num_samples=(2, 4), seed=0)
    assert np.isnan(found.decoder_gradient).all()
    assert np.isfinite(found.posterior_gradient).all()
    assert str(found).splitlines()[1].split()[-1] == "-"


def test_a_decoder_that_cuts_the_graph_has_neither() -> None:
    found = mcelbo.study(*data(3, 3), lambda z: z.detach().sin(), num_samples=(2,), seed=0)
    assert np.isfinite(found.standard_error).all()
    assert np.isnan(found.posterior_gradient).all()


def test_enough_follows_the_square_root() -> None:
    column = np.array([0.4, 0.1])
    found = mcelbo.Study(np.array([1, 16]), np.array([3.0, 2.0]), 2 * column, column, column * np.nan, 8)
    assert found.relative_error == pytest.approx(column)
    assert found.enough(0.05)[:2] == (64.0, 64.0)
    assert math.isnan(found.enough(0.05).decoder_gradient)
    assert found.enough(10.0).value == 1.0
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="relative is"):
            found.enough(wrong)


def test_the_table_reads_as_it_should() -> None:
    found = mcelbo.Study(*(np.array(c) for c in ([1, 1024], [0.5, 0.25], [0.1, 0.05], [2.0, 1.0], [0.5, 0.25])), 8)
    assert str(found).split("\n") == [
        "samples  squared error  standard error  relative  posterior grad.  decoder grad.",
        "      1            0.5             0.1       40%             200%            50%",
        "  1,024           0.25            0.05       20%             100%            25%",
    ]


def test_an_empty_batch_and_missing_numbers_are_passed_on() -> None:
    x, mu, logvar = data()
    nothing = mcelbo.study(x[:0], mu[:0], logvar[:0], affine(), num_samples=(2,), seed=0)
    assert np.isnan(nothing.value).all()
    x[0, 0] = math.nan
    assert np.isnan(mcelbo.study(x, mu, logvar, affine(), num_samples=(2,), seed=0).value).all()


def test_generators_and_seeds_decide() -> None:
    def study(**draw: object) -> str:
        return str(mcelbo.study(*data(), affine(), num_samples=(2,), **draw))

    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    first, again, other = (study(generator=generator) for generator in generators)
    assert first == again != other
    assert study(seed=3) == study(seed=torch.tensor(3)) != study(seed=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": ()}, "num_samples is empty"),
        ({"num_samples": (4, 0)}, "num_samples is 0"),
        ({"num_samples": (2, 3), "sampler": "antithetic"}, "num_samples is 3"),
        ({"replications": 1}, "replications is 1"),
        ({"sampler": "halton"}, "sampler is 'halton'"),
        ({"weight": torch.ones(6, dtype=torch.float64)}, "weight has shape"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mcelbo.study(*data(), affine(), **arguments)


def test_counts_are_integers() -> None:
    with pytest.raises(TypeError, match=r"num_samples is 2\.0"):
        mcelbo.study(*data(), affine(), num_samples=(2.0,))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 2**32))
def test_a_stream_of_parts_has_the_moments_of_the_whole(sizes: list[int], seed: int) -> None:
    values = torch.randn(sum(sizes) + 1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    stream = Stream()
    for part in values.split([*sizes, 1]):
        stream.add(part.mean(0), len(part), (part - part.mean(0)).square().sum(0))
    assert torch.allclose(stream.mean, values.mean(0), rtol=1e-12, atol=1e-12)
    assert torch.allclose(stream.variance(), values.var(0), rtol=1e-12)


def test_a_single_number_of_samples_is_no_sequence() -> None:
    with pytest.raises(TypeError, match="num_samples is 4: expected a sequence of integers"):
        mcelbo.study(*data(), mlp(), num_samples=4)  # type: ignore[arg-type]
