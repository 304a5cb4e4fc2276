"""The losses against their formulas in plain torch, closed forms, and the mistakes that such losses have made."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.distributions import Independent, LogNormal, Normal, kl_divergence
from torch.nn import functional

import mcelbo
from mcelbo import Gaussian
from mcelbo_kernels.cpu import gram

# Of every hidden activation a kernel is compiled: one is the same in all tests in double precision.
DECODERS: tuple[Callable[[int, int], nn.Module], ...] = (
    nn.Linear,
    lambda d, m: nn.Sequential(nn.Linear(d, m), nn.Sigmoid()),
    lambda d, m: nn.Sequential(nn.Linear(d, 4), nn.ReLU(), nn.Linear(4, m)),
)
DOUBLE = {"rtol": 1e-10, "atol": 1e-10}  # sums of at most a few hundred float64 terms of order one


@pytest.fixture(autouse=True)
def _quadratic_forms_of_small_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "OF_A_CALL", 0)


class Case(NamedTuple):
    """One call in float64 with its noise, and what autograd is asked about."""

    x: Tensor  # (B, 1, m)
    mu: Tensor
    logvar: Tensor
    weight: Tensor | None
    eps: Tensor  # (B, n, d)
    decoder: nn.Module

    def keywords(self) -> dict[str, Any]:
        return {"weight": self.weight, "eps": self.eps, "num_samples": self.eps.shape[1]}

    def leaves(self) -> list[Tensor]:
        tensors = [self.x, self.mu, self.logvar, self.weight, *self.decoder.parameters()]
        return [tensor for tensor in tensors if tensor is not None]

    def samples(self) -> Tensor:
        """Decode, (B, n, 1, m)."""
        z = self.mu[:, None] + (self.logvar[:, None] / 2).exp() * self.eps
        return self.decoder(z.flatten(0, 1)).reshape(*z.shape[:2], *self.x.shape[1:])

    def weights(self) -> Tensor:
        return torch.ones_like(self.x) if self.weight is None else self.weight.expand(self.x.shape)

    def errors(self) -> Tensor:
        """T (B, n)."""
        return (self.weights()[:, None] * (self.x[:, None] - self.samples()).square()).sum((2, 3))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, n, m = (draw(st.integers(1, most)) for most in (4, 5, 7))
    maker = draw(st.sampled_from(DECODERS))
    d = draw(st.sampled_from([1, 3])) if maker is DECODERS[1] else 3  # the fewest latents have kernels of their own
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()

    rows = draw(st.sampled_from([0, 1, batch]))
    weight = normal(rows, 1, m).detach().abs().requires_grad_() if rows else None
    eps, decoder = normal(batch, n, d).detach(), maker(d, m).double()
    return Case(normal(batch, 1, m), normal(batch, d), normal(batch, d), weight, eps, decoder)


def assert_same(found: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    """Compare values and all gradients, for an upstream gradient that is not constant."""
    torch.testing.assert_close(found, expected, **DOUBLE)
    upstream = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).reshape(found.shape)
    wanted = torch.autograd.grad(expected, leaves, upstream, allow_unused=True, materialize_grads=True)
    gradients = torch.autograd.grad(found, leaves, upstream, allow_unused=True, materialize_grads=True)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, **DOUBLE)


@given(case=cases(), reduction=st.sampled_from(["none", "sum", "batchmean", "mean"]))
def test_expected_squared_error_is_its_formula(case: Case, reduction: str) -> None:
    found = mcelbo.expected_squared_error(
        case.x, case.mu, case.logvar, case.decoder, reduction=reduction, **case.keywords()
    )
    errors = case.errors()
    total = errors.mean(1).sum()
    expected = {
        "none": errors,
        "sum": total,
        "batchmean": errors.mean(1).mean(),
        "mean": total / case.weights().sum(),
    }
    assert_same(found, expected[reduction], case.leaves())


@given(case=cases())
def test_without_weights_the_mean_is_mse_loss_of_every_sample(case: Case) -> None:
    case = case._replace(weight=None)
    found = mcelbo.expected_squared_error(case.x, case.mu, case.logvar, case.decoder, **case.keywords())
    samples = case.samples()
    assert_same(found, functional.mse_loss(samples, case.x[:, None].expand(samples.shape)), case.leaves())


@given(case=cases(), beta=st.floats(0, 3), sigma=st.floats(0.2, 3))
def test_elbo_is_its_formula(case: Case, beta: float, sigma: float) -> None:
    out = mcelbo.elbo(
        case.x, case.mu, case.logvar, case.decoder, likelihood=Gaussian(sigma), beta=beta, **case.keywords()
    )
    scale = torch.full_like(case.x, sigma)[:, None]
    w = case.weights()[:, None]
    normalised = Normal(case.samples(), scale).log_prob(case.x[:, None])
    # a weight scales the whole density of its pixel: T and m_b alike
    reconstruction = (w * normalised).sum((2, 3)).mean(1)
    q = Independent(Normal(case.mu, (case.logvar / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(case.mu), 1.0), 1)
    kl = kl_divergence(q, prior)
    assert_same(out.loss, -(reconstruction - beta * kl).mean(), case.leaves())
    torch.testing.assert_close(out.kl, kl.detach(), **DOUBLE)
    torch.testing.assert_close(out.reconstruction, reconstruction.detach(), **DOUBLE)
    torch.testing.assert_close(out.bound, (reconstruction - beta * kl).detach(), **DOUBLE)
    assert not any(field.requires_grad for field in (out.bound, out.reconstruction, out.kl, out.standard_error()))


def test_the_divergence_of_a_posterior_close_to_the_prior_keeps_its_digits() -> None:
    logvar = torch.tensor([[1e-3], [-2e-3]])
    out = mcelbo.elbo(torch.zeros(2, 4), torch.zeros(2, 1), logvar, nn.Linear(1, 4), num_samples=2)
    exact = (logvar.double().expm1() - logvar.double()).sum(1) / 2
    # of two terms a thousand times as large as their difference each is off by half an epsilon, at most
    torch.testing.assert_close(out.kl.double(), exact, rtol=2e3 * torch.finfo(torch.float32).eps, atol=0.0)


@given(case=cases())
def test_the_standard_error_is_that_of_the_mean_of_n_samples(case: Case) -> None:
    out = mcelbo.elbo(case.x, case.mu, case.logvar, case.decoder, likelihood=Gaussian(0.5), **case.keywords())
    n = case.eps.shape[1]
    if n == 1:
        assert out.standard_error().isnan().all()
    else:
        expected = (case.errors() / (2 * 0.5**2)).std(1) / math.sqrt(n)
        torch.testing.assert_close(out.standard_error(), expected.detach(), rtol=1e-7, atol=1e-7)


@given(case=cases())
def test_a_learned_scale_and_beta_get_their_gradients(case: Case) -> None:
    log_sigma = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    out = mcelbo.elbo(
        case.x, case.mu, case.logvar, case.decoder, likelihood=Gaussian(log_sigma.exp()), beta=beta, **case.keywords()
    )
    pixels = case.weights().sum((1, 2))
    reconstruction = -case.errors().mean(1) / (2 * (2 * log_sigma).exp()) - pixels / 2 * (
        math.log(2 * math.pi) + 2 * log_sigma
    )
    kl = (case.mu.square() + case.logvar.exp() - 1 - case.logvar).sum(1) / 2
    assert_same(out.loss, (beta * kl - reconstruction).mean(), [*case.leaves(), log_sigma, beta])


@given(case=cases())
def test_the_optimal_scale_makes_the_loss_a_log_of_the_error(case: Case) -> None:
    # closed form 8: s^2 = MSE over pixels, samples and batch;   B loss = (M / 2) (1 + log 2 pi + log MSE) + KL
    out = mcelbo.elbo(case.x, case.mu, case.logvar, case.decoder, likelihood=Gaussian("optimal"), **case.keywords())
    pixels = case.weights().sum()
    mse = case.errors().mean(1).sum() / pixels
    kl = (case.mu.square() + case.logvar.exp() - 1 - case.logvar).sum() / 2
    expected = (pixels / 2 * (1 + math.log(2 * math.pi) + mse.log()) + kl) / len(case.x)
    assert_same(out.loss, expected, case.leaves())
    at_optimum = mcelbo.elbo(
        case.x, case.mu, case.logvar, case.decoder, likelihood=Gaussian(mse.detach().sqrt()), **case.keywords()
    )
    torch.testing.assert_close(out.loss, at_optimum.loss, **DOUBLE)
    torch.testing.assert_close(out.bound, at_optimum.bound, **DOUBLE)


def test_probabilistic_pca_is_bounded_by_its_likelihood_and_reaches_it() -> None:
    # closed form 5: with the exact posterior the bound is log p(x), for every datum
    digits = load_digits().data[:300]
    pca = PCA(4).fit(digits)
    s2 = pca.noise_variance_
    w = pca.components_.T * np.sqrt(pca.explained_variance_ - s2)  # (m, d)
    centred = digits - pca.mean_
    posterior = np.linalg.inv(w.T @ w + s2 * np.eye(4))
    mean, variance = centred @ w @ posterior, s2 * np.diag(posterior)
    assert np.abs(posterior - np.diag(np.diag(posterior))).max() < 1e-12
    decoder = nn.Linear(4, 64).double()
    decoder.weight.data, decoder.bias.data = torch.tensor(w), torch.tensor(pca.mean_)
    x, mu = torch.tensor(digits), torch.tensor(mean)
    logvar, n = torch.tensor(variance).log().expand(mu.shape), 64
    settings: dict[str, Any] = {"num_samples": n, "likelihood": Gaussian(math.sqrt(s2)), "seed": 1}
    out = mcelbo.elbo(x, mu, logvar, decoder, **settings)
    score = pca.score_samples(digits)
    # closed form 2: Var T = (4 |Sigma^(1/2) W^T r|^2 + 2 tr A^2) / n;  log p(x|z) is T over -2 s^2
    residual = centred - mean @ w.T
    a = np.sqrt(variance)[:, None] * (w.T @ w) * np.sqrt(variance)
    first = ((residual @ w) ** 2 * variance).sum(1)
    error = np.sqrt((4 * first + 2 * np.trace(a @ a)) / n) / (2 * s2)
    # 300 tests at 5 standard errors: a false alarm in 5,000
    assert (np.abs(out.bound.numpy() - score) < 5 * error).all()
    assert abs(out.bound.numpy().mean() - score.mean()) < 5 * np.sqrt((error**2).sum()) / 300
    # any other posterior stays below by its divergence, here exactly known
    wider = mcelbo.elbo(x, mu, logvar + 1, decoder, **settings)
    gap = 4 * (math.e - 2) / 2  # KL(N(mu, e v) || N(mu, v)) of 4 latents
    spread = np.sqrt((4 * math.e * first + 2 * math.e**2 * np.trace(a @ a)) / n) / (2 * s2)
    assert (np.abs(wider.bound.numpy() - (score - gap)) < 5 * spread).all()


def test_gradients_of_a_known_model() -> None:
    # closed form 10: likelihood N(z, 1), q = N(0, 1), data -0.5 and 2: d/dloc = (0.5, -2), d/dscale (shared) = 2
    x = torch.tensor([[-0.5], [2.0]])
    loc, scale = torch.zeros(2, 1, requires_grad=True), torch.ones(1, requires_grad=True)
    identity = nn.Linear(1, 1)
    identity.weight.data, identity.bias.data = torch.ones(1, 1), torch.zeros(1)
    mu, logvar = mcelbo.posterior_parameters(Normal(loc, scale.expand(2, 1)))
    eps = torch.tensor([1.0, -1.0]).reshape(1, 2, 1).expand(2, 2, 1)  # moments of a standard normal, exactly
    out = mcelbo.elbo(x, mu, logvar, identity, num_samples=2, eps=eps)
    gradients = torch.autograd.grad(2 * out.loss, [loc, scale])
    torch.testing.assert_close(gradients[0], torch.tensor([[0.5], [-2.0]]))
    torch.testing.assert_close(gradients[1], torch.tensor([2.0]))
    # antithetic pairs make the gradient in loc exact for a linear decoder, whatever is drawn
    mu, logvar = mcelbo.posterior_parameters(Normal(loc, scale.expand(2, 1)))
    drawn = mcelbo.elbo(x, mu, logvar, identity, num_samples=2, sampler="antithetic", seed=3)
    torch.testing.assert_close(torch.autograd.grad(2 * drawn.loss, loc)[0], gradients[0])


@given(case=cases())
def test_reconstructions_are_never_averaged_first(case: Case) -> None:
    # closed form 3: mean |x - y_i|^2 = |x - ybar|^2 + mean |y_i - ybar|^2
    y = case.samples()
    centre, w = y.mean(1, keepdim=True), case.weights()[:, None]
    of_mean = (w * (case.x[:, None] - centre).square()).sum((1, 2, 3))
    spread = (w * (y - centre).square()).sum((2, 3)).mean(1)
    found = mcelbo.expected_squared_error(
        case.x, case.mu, case.logvar, case.decoder, reduction="none", **case.keywords()
    ).mean(1)
    torch.testing.assert_close(found, of_mean + spread, **DOUBLE)


def test_logvar_is_a_log_variance() -> None:
    x, zero, eps = torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, 1)
    identity = nn.Linear(1, 1)
    identity.weight.data, identity.bias.data = torch.ones(1, 1), torch.zeros(1)
    logvar = torch.full((1, 1), 2 * math.log(3))  # sigma = 3
    found = mcelbo.expected_squared_error(x, zero, logvar, identity, num_samples=1, eps=eps)
    assert found.item() == pytest.approx(9)


def test_pixels_and_latents_are_summed_and_data_averaged() -> None:
    x, mu = torch.rand(3, 5), torch.randn(3, 2)
    decoder = nn.Linear(2, 5)
    twice = nn.Linear(2, 10)
    twice.weight.data, twice.bias.data = decoder.weight.data.repeat(2, 1), decoder.bias.data.repeat(2)
    once = mcelbo.elbo(x, mu, mu, decoder, num_samples=4, seed=1)
    double = mcelbo.elbo(x.repeat(1, 2), mu, mu, twice, num_samples=4, seed=1)
    torch.testing.assert_close(double.reconstruction, 2 * once.reconstruction)
    torch.testing.assert_close(double.kl, once.kl)
    torch.testing.assert_close(once.loss, -once.bound.mean())


@pytest.mark.parametrize("layers", [1, 2])
def test_a_datum_and_a_sample_keep_their_noise_in_any_slice(layers: int) -> None:
    x, mu = torch.rand(5, 6), torch.randn(5, 2)
    decoder = nn.Linear(2, 6) if layers == 1 else nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 6))
    settings: dict[str, Any] = {"seed": 7, "reduction": "none"}
    whole = mcelbo.expected_squared_error(x, mu, mu, decoder, num_samples=8, **settings)
    part = mcelbo.expected_squared_error(
        x[2:4], mu[2:4], mu[2:4], decoder, num_samples=3, datum_offset=2, sample_offset=4, **settings
    )
    torch.testing.assert_close(part, whole[2:4, 4:7])
    again = mcelbo.expected_squared_error(
        x[2:4], mu[2:4], mu[2:4], decoder, num_samples=3, seed=torch.tensor(7), datum_offset=2, sample_offset=4,
        reduction="none",
    )  # fmt: skip
    assert torch.equal(part, again)
    other = mcelbo.expected_squared_error(x, mu, mu, decoder, num_samples=8, seed=8, reduction="none")
    assert not torch.isclose(other, whole).all(1).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_unless_its_weight_is_zero(bad: float) -> None:
    x, mu = torch.rand(3, 4), torch.randn(3, 2, requires_grad=True)
    decoder = nn.Linear(2, 4)
    x[1, 2] = bad
    errors = mcelbo.expected_squared_error(x, mu, mu, decoder, num_samples=3, seed=1, reduction="none")
    assert not errors[1].isfinite().any()
    assert errors[[0, 2]].isfinite().all()
    assert not mcelbo.elbo(x, mu, mu, decoder, num_samples=3).loss.isfinite()
    mask = torch.ones(3, 4)
    mask[1, 2] = 0
    masked = mcelbo.elbo(x, mu, mu, decoder, num_samples=3, seed=1, weight=mask)
    replaced = mcelbo.elbo(x.nan_to_num(0.0, 0.0), mu, mu, decoder, num_samples=3, seed=1, weight=mask)
    assert torch.equal(masked.bound, replaced.bound)
    (gradient,) = torch.autograd.grad(masked.loss, mu)
    assert torch.equal(gradient, torch.autograd.grad(replaced.loss, mu)[0])
    assert gradient.isfinite().all()


def test_an_empty_batch_follows_torch() -> None:
    x, mu = torch.empty(0, 1, 4), torch.empty(0, 2, requires_grad=True)
    arguments = (x, mu, mu, nn.Linear(2, 4))
    assert mcelbo.expected_squared_error(*arguments, num_samples=3).isnan()
    assert mcelbo.expected_squared_error(*arguments, num_samples=3, reduction="batchmean").isnan()
    assert mcelbo.expected_squared_error(*arguments, num_samples=3, reduction="sum") == 0
    out = mcelbo.elbo(*arguments, num_samples=3)
    assert out.loss.isnan()
    assert out.bound.shape == out.standard_error().shape == (0,)


def test_options_are_named_with_those_that_are_known() -> None:
    x, mu, decoder = torch.rand(2, 4), torch.zeros(2, 2), nn.Linear(2, 4)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"bound": "iwae"}, ValueError, "bound is 'iwae': expected one of 'elbo'"),
        ({"gradient": "stl"}, ValueError, "gradient is 'stl': expected one of 'reparam'"),
        ({"likelihood": "gaussian"}, TypeError, "likelihood is str: expected a Gaussian or a Bernoulli"),
        ({"likelihood": Gaussian}, TypeError, "likelihood is type: expected a Gaussian or a Bernoulli"),
        ({"beta": -1.0}, ValueError, "beta is -1.0: expected a finite beta >= 0"),
        ({"beta": "1"}, TypeError, "beta is '1': expected a float or a scalar tensor"),
        ({"beta": torch.ones(2)}, TypeError, "beta is a tensor of torch.float32 and shape (2,): expected one"),
    ]
    for changes, error, message in cases:
        with pytest.raises(error, match=re.escape(message)):
            mcelbo.elbo(x, mu, mu, decoder, num_samples=2, **changes)


@pytest.mark.parametrize("sampler", ["antithetic", "sobol"])
def test_dependent_samples_have_no_standard_error(sampler: str) -> None:
    x, mu, decoder = torch.rand(2, 4), torch.zeros(2, 2), nn.Linear(2, 4)
    out = mcelbo.elbo(x, mu, mu, decoder, num_samples=2, sampler=sampler)
    assert out.variance is None
    with pytest.raises(ValueError, match="are not independent: repeat with other seeds"):
        out.standard_error()
    # of noise that the caller gives, what a sampler would draw is no matter
    assert (
        mcelbo.elbo(x, mu, mu, decoder, num_samples=2, sampler=sampler, eps=torch.randn(2, 2, 2)).variance is not None
    )


def test_the_criterion_is_elbo_and_owns_nothing() -> None:
    x, mu, decoder = torch.rand(2, 1, 2, 2), torch.randn(2, 2), nn.Linear(2, 4)
    criterion = mcelbo.ELBOLoss(num_samples=4, likelihood=Gaussian(0.5), beta=2.0, sampler="antithetic")
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    found = criterion(x, mu, mu, decoder, seed=3, weight=mask, datum_offset=1, sample_offset=2)
    expected = mcelbo.elbo(
        x, mu, mu, decoder, num_samples=4, likelihood=Gaussian(0.5), beta=2.0, sampler="antithetic",
        seed=3, weight=mask, datum_offset=1, sample_offset=2,
    )  # fmt: skip
    assert torch.equal(found, expected.loss)
    assert not criterion.state_dict()
    assert not list(criterion.parameters())
    assert repr(criterion) == (
        "ELBOLoss(num_samples=4, likelihood=Gaussian(sigma=0.5), beta=2.0, bound='elbo', gradient='reparam', "
        "sampler='antithetic')"
    )
    criterion.beta = 0.0
    assert criterion(x, mu, mu, decoder, seed=3) != found


def test_the_criterion_takes_the_noise_and_the_generator_of_elbo() -> None:
    x, mu, decoder, eps = torch.rand(2, 4), torch.randn(2, 2), nn.Linear(2, 4), torch.randn(2, 3, 2)
    criterion = mcelbo.ELBOLoss(num_samples=3)
    assert torch.equal(
        criterion(x, mu, mu, decoder, eps=eps), mcelbo.elbo(x, mu, mu, decoder, num_samples=3, eps=eps).loss
    )
    first, again = (criterion(x, mu, mu, decoder, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("option", ["bound", "gradient"])
def test_the_criterion_refuses_what_elbo_refuses(option: str) -> None:
    x, mu, decoder = torch.rand(2, 4), torch.randn(2, 2), nn.Linear(2, 4)
    with pytest.raises(ValueError, match=f"{option} is 'other': expected one of"):
        mcelbo.ELBOLoss(num_samples=3, **{option: "other"})(x, mu, mu, decoder)


def test_the_generator_governs_what_is_drawn() -> None:
    x, mu, decoder = torch.rand(2, 4), torch.zeros(2, 2), nn.Linear(2, 4)

    def loss(**draw: Any) -> float:
        return mcelbo.expected_squared_error(x, mu, mu, decoder, num_samples=2, **draw).item()

    torch.manual_seed(1)
    first, second = loss(), loss()
    torch.manual_seed(1)
    assert loss() == first != second
    assert loss(generator=torch.Generator().manual_seed(1)) == first


@pytest.mark.parametrize("wrap", [lambda q: q, lambda q: Independent(q, 1)])
def test_posterior_parameters_of_a_normal(wrap: Callable[[Normal], Any]) -> None:
    loc, scale = torch.randn(3, 2), torch.rand(3, 2).requires_grad_()
    mu, logvar = mcelbo.posterior_parameters(wrap(Normal(loc, scale)))
    assert torch.equal(mu, loc)
    torch.testing.assert_close((logvar / 2).exp(), scale)
    assert logvar.requires_grad


def test_other_posteriors_are_named() -> None:
    with pytest.raises(TypeError, match="q is LogNormal: expected Normal or Independent"):
        mcelbo.posterior_parameters(LogNormal(torch.zeros(1), torch.ones(1)))
    with pytest.raises(TypeError, match=r"q is Independent\(LogNormal\): expected Normal or Independent"):
        mcelbo.posterior_parameters(Independent(LogNormal(torch.zeros(1), torch.ones(1)), 1))
    with pytest.raises(TypeError, match="q is tuple"):
        mcelbo.posterior_parameters((torch.zeros(1), torch.ones(1)))  # type: ignore[arg-type]
