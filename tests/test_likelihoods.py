"""The likelihoods: which scales they take, and that what they make of errors are torch's log densities."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

import mcelbo
from mcelbo import Bernoulli, Gaussian
from mcelbo.arguments import Sums, prepare
from mcelbo.likelihoods import Likelihood

BAD: list[tuple[Any, type[Exception], str]] = [
    (0.0, ValueError, "sigma is 0.0: expected a finite sigma > 0"),
    (-1, ValueError, "sigma is -1: expected a finite sigma > 0"),
    (math.nan, ValueError, "sigma is nan: expected a finite sigma > 0"),
    (math.inf, ValueError, "sigma is inf: expected a finite sigma > 0"),
    ("best", ValueError, "sigma is 'best': expected a float, a tensor or 'optimal'"),
    (True, TypeError, "sigma is True: expected a float or a scalar tensor"),
    (None, TypeError, "sigma is None: expected a float or a scalar tensor"),
    (torch.tensor(1), TypeError, "sigma is a tensor of torch.int64 and shape (): expected one floating-point number"),
    (torch.ones(2, dtype=torch.int64), TypeError, "sigma is a tensor of torch.int64: expected floating-point numbers"),
]
B, N, D, IMAGE = 3, 4, 2, (2, 3)
M = 6
PIXEL_SCALES = ((M,), IMAGE, (1, *IMAGE), (B, *IMAGE), (B, 1, 1), (3,))


@pytest.mark.parametrize(("sigma", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_scales_are_named(sigma: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Gaussian(sigma)


def density(likelihood: Likelihood, total: Tensor, pixels: int) -> Tensor:
    """log p of one datum of so many pixels whose mean error is `total`."""
    zeros = total.new_zeros(1, 1)
    arguments = prepare(total.new_zeros(1, pixels), zeros, zeros, num_samples=1)
    divisor, constant = likelihood.log_density(arguments, Sums(total, total, total))
    return -total / divisor - constant


@given(sigma=st.floats(1e-3, 1e3), pixels=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_the_density_is_a_normals(sigma: float, pixels: int, seed: int) -> None:
    r = torch.randn(pixels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = Normal(torch.zeros_like(r), sigma).log_prob(r).sum()
    tensor = torch.tensor(sigma, dtype=torch.float64)
    for scale in (sigma, np.float64(sigma), tensor, tensor.reshape(1)):
        torch.testing.assert_close(density(Gaussian(scale), r.square().sum(), pixels), expected)


@given(sigma=st.floats(0.1, 10), seed=st.integers(0, 2**31))
def test_no_scale_beats_the_optimal_one(sigma: float, seed: int) -> None:
    total = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    best = density(Gaussian("optimal"), total, 3)
    assert density(Gaussian(sigma), total, 3) <= best + 1e-12 * best.abs()


@pytest.mark.parametrize("number", [np.float32(2), np.float16(2), np.int64(2)])
def test_numbers_of_numpy_are_numbers(number: Any) -> None:
    total = torch.tensor(3.0)
    assert torch.equal(density(Gaussian(number), total, 3), density(Gaussian(2.0), total, 3))


def test_a_tensor_scale_takes_the_dtype_of_the_errors() -> None:
    assert density(Gaussian(torch.tensor(0.5, dtype=torch.float64)), torch.tensor(2.0), 1).dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (M,)])
def test_a_negative_learned_scale_shows_as_nan(shape: tuple[int, ...]) -> None:
    assert density(Gaussian(torch.full(shape, -0.5)), torch.tensor(2.0), M).isnan().all()


# --- in a bound: x (B, 2, 3), decoders that are fused and one that is not ---


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


DECODERS: dict[str, Callable[[], nn.Module]] = {
    "fused": lambda: nn.Linear(D, M),
    "deep": lambda: nn.Sequential(nn.Linear(D, 5), nn.ReLU(), nn.Linear(5, M)),
    "chunked": lambda: nn.Sequential(nn.Linear(D, 5), nn.Softsign(), nn.Linear(5, M)),
}


class Case:
    """Leaves, noise and decoder of one bound in float64."""

    def __init__(self, decoder: str, weighted: bool = True) -> None:
        torch.manual_seed(0)
        self.decoder = DECODERS[decoder]().double()
        self.x, self.mu, self.logvar = leaf(B, *IMAGE), leaf(B, D, seed=1), leaf(B, D, seed=2)
        self.weight = leaf(B, *IMAGE, seed=3).detach().abs().requires_grad_() if weighted else None
        self.eps = leaf(B, N, D, seed=4).detach()

    def leaves(self) -> list[Tensor]:
        tensors = [self.x, self.mu, self.logvar, self.weight, *self.decoder.parameters()]
        return [tensor for tensor in tensors if tensor is not None]

    def elbo(self, likelihood: Likelihood) -> mcelbo.Bound:
        return mcelbo.elbo(
            self.x, self.mu, self.logvar, self.decoder,
            num_samples=N, eps=self.eps, weight=self.weight, likelihood=likelihood,
        )  # fmt: skip

    def y(self) -> Tensor:
        """Decode, (B, n, 2, 3)."""
        z = self.mu[:, None] + (self.logvar[:, None] / 2).exp() * self.eps
        return self.decoder(z.flatten(0, 1)).reshape(B, N, *IMAGE)

    def check(self, likelihood: Likelihood, log_densities: Tensor, leaves: list[Tensor]) -> None:
        """Compare with log densities (B, n, 2, 3) in plain torch: the loss and its gradients, all other fields."""
        weights = torch.ones_like(self.x) if self.weight is None else self.weight
        samples = (weights[:, None] * log_densities).sum((2, 3))
        kl = (self.mu.square() + self.logvar.exp() - 1 - self.logvar).sum(1) / 2
        expected = -(samples.mean(1) - kl).mean()
        out = self.elbo(likelihood)
        torch.testing.assert_close(out.loss, expected)
        torch.testing.assert_close(out.reconstruction, samples.mean(1).detach())
        torch.testing.assert_close(out.standard_error(), samples.std(1).detach() / math.sqrt(N))
        found, wanted = (torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (out.loss, expected))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)


by_decoder = pytest.mark.parametrize("decoder", DECODERS)
weighted_or_not = pytest.mark.parametrize("weighted", [True, False])


def test_the_decoders_take_both_paths() -> None:
    paths = {name: mcelbo.explain(decoder()).path for name, decoder in DECODERS.items()}
    assert paths == {"fused": "grid", "deep": "grid", "chunked": "any"}


@by_decoder
@weighted_or_not
def test_bernoulli_is_torchs_cross_entropy_with_logits(decoder: str, weighted: bool) -> None:
    case = Case(decoder, weighted)
    x = case.x[:, None].expand(B, N, *IMAGE)
    entropy = functional.binary_cross_entropy_with_logits(case.y(), x, reduction="none")
    case.check(Bernoulli(), -entropy, case.leaves())


@by_decoder
@weighted_or_not
@pytest.mark.parametrize("shape", PIXEL_SCALES, ids=str)
def test_a_scale_for_each_pixel_is_a_normals(decoder: str, weighted: bool, shape: tuple[int, ...]) -> None:
    case, log_sigma = Case(decoder, weighted), leaf(*shape, seed=5)
    sigma = log_sigma.exp()
    shaped = sigma.reshape(IMAGE) if shape == (M,) else sigma.expand(B, *IMAGE)[:, None]
    case.check(Gaussian(sigma), Normal(case.y(), shaped).log_prob(case.x[:, None]), [*case.leaves(), log_sigma])


@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), Gaussian(torch.linspace(0.2, 1, M).double())], ids=["bernoulli", "per pixel"]
)
def test_the_fused_pass_and_chunks_give_the_same(likelihood: Likelihood) -> None:
    case = Case("fused")
    fused, layer = case.elbo(likelihood), case.decoder
    case.decoder = nn.Sequential(nn.Identity(), layer)
    case.decoder.register_forward_hook(lambda module, inputs, output: None)
    assert mcelbo.explain(case.decoder).path == "any"
    chunked = case.elbo(likelihood)
    for one, other in zip(fused, chunked, strict=True):
        torch.testing.assert_close(one, other)
    found, expected = (torch.autograd.grad(out.loss, case.leaves()) for out in (fused, chunked))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@by_decoder
def test_equal_scales_are_one(decoder: str) -> None:
    case = Case(decoder)
    one, many = case.elbo(Gaussian(0.3)), case.elbo(Gaussian(torch.full((M,), 0.3, dtype=torch.float64)))
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b)


@by_decoder
@pytest.mark.parametrize("weighted", [True, False])
def test_the_gradient_of_the_scales_is_that_of_differences(decoder: str, weighted: bool) -> None:
    case, log_sigma = Case(decoder, weighted), leaf(*IMAGE, seed=5)
    assert torch.autograd.gradcheck(lambda t: case.elbo(Gaussian(t.exp())).loss, log_sigma)


def test_learned_scales_find_the_errors_of_their_pixels() -> None:
    # at the optimum s_j^2 is the squared error of pixel j, averaged over samples and data
    case, log_sigma = Case("fused", weighted=False), torch.zeros(M, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_sigma], max_iter=100)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = case.elbo(Gaussian(log_sigma.exp())).loss
        loss.backward()
        return loss

    optimiser.step(closure)
    errors = (case.x[:, None] - case.y()).square().mean((0, 1)).flatten()
    torch.testing.assert_close((2 * log_sigma).exp(), errors, rtol=1e-4, atol=0)


@by_decoder
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -1.0, 1e-200])
def test_the_scale_of_an_excluded_pixel_does_not_matter(decoder: str, bad: float) -> None:
    case = Case(decoder)
    assert case.weight is not None
    with torch.no_grad():
        case.weight[:, 0, 1] = 0

    def outcome(value: float) -> list[Tensor]:
        sigma = torch.full(IMAGE, 0.5, dtype=torch.float64)
        sigma[0, 1] = value
        out, leaves = case.elbo(Gaussian(sigma.requires_grad_())), [*case.leaves(), sigma]
        gradients = list(torch.autograd.grad(out.loss, leaves))
        del gradients[3]  # of the weight, where the scale does matter
        return [*out, *gradients]

    for found, expected in zip(outcome(bad), outcome(0.5), strict=True):
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


@by_decoder
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_excluded_pixel_leaves_its_scale_to_the_other_data(decoder: str, bad: float) -> None:
    case = Case(decoder)
    assert case.weight is not None
    with torch.no_grad():
        case.weight[0, 0, 1] = 0

    def gradient(pixel: float) -> Tensor:
        sigma = torch.full(IMAGE, 0.5, dtype=torch.float64, requires_grad=True)
        with torch.no_grad():
            case.x[0, 0, 1] = pixel
        return torch.autograd.grad(case.elbo(Gaussian(sigma)).loss, sigma)[0]

    torch.testing.assert_close(gradient(bad), gradient(0.3))


def test_a_mask_has_its_gradient_where_it_is_zero() -> None:
    case, sigma = Case("fused"), torch.full(IMAGE, 0.2, dtype=torch.float64)
    assert case.weight is not None
    with torch.no_grad():
        case.weight[:, 0, 1] = 0
    case.check(Gaussian(sigma), Normal(case.y(), sigma).log_prob(case.x[:, None]), [case.weight])


def test_scales_that_do_not_go_with_the_data_are_named() -> None:
    x, mu, decoder = torch.rand(2, 2, 3), torch.zeros(2, 2), nn.Linear(2, 6)
    cases: list[tuple[Tensor, type[Exception], str]] = [
        (torch.ones(5), ValueError, "sigma has shape (5,): expected one that broadcasts to that of x, (2, 2, 3)"),
        (torch.ones(6, dtype=torch.float64), TypeError, "sigma is torch.float64 and x torch.float32: expected one"),
        (torch.ones(6, device="meta"), ValueError, "sigma is on the meta device"),
    ]
    for sigma, error, message in cases:
        with pytest.raises(error, match=re.escape(message)):
            mcelbo.elbo(x, mu, mu, decoder, num_samples=2, likelihood=Gaussian(sigma))


@pytest.mark.parametrize("hidden", [False, True])
def test_bernoulli_refuses_a_decoder_of_probabilities(hidden: bool) -> None:
    x, mu = torch.rand(2, 4), torch.zeros(2, 2)
    layers = [nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4)] if hidden else [nn.Linear(2, 4)]
    with pytest.raises(ValueError, match=r"decoder ends in a Sigmoid: .* decoder must return logits"):
        mcelbo.elbo(x, mu, mu, nn.Sequential(*layers, nn.Sigmoid()), num_samples=2, likelihood=Bernoulli())


def test_bernoulli_takes_any_other_output() -> None:
    x, mu, layer = torch.rand(2, 4), torch.randn(2, 2), nn.Linear(2, 4)
    arguments: dict[str, Any] = {"num_samples": 3, "seed": 1, "likelihood": Bernoulli()}
    found = mcelbo.elbo(x, mu, mu, nn.Sequential(layer, nn.Softplus()), **arguments)
    expected = mcelbo.elbo(x, mu, mu, lambda z: functional.softplus(layer(z)), **arguments)
    torch.testing.assert_close(found.bound, expected.bound)


@by_decoder
def test_extreme_logits_stay_finite(decoder: str) -> None:
    case = Case(decoder, weighted=False)
    with torch.no_grad():
        for parameter in case.decoder.parameters():
            parameter *= 1e4
    out = case.elbo(Bernoulli())
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.loss, case.leaves()))


def test_the_criterion_takes_both() -> None:
    x, mu, decoder = torch.rand(2, 4), torch.randn(2, 2), nn.Linear(2, 4)
    for likelihood in (Bernoulli(), Gaussian(torch.rand(4) + 0.1)):
        criterion = mcelbo.ELBOLoss(num_samples=3, likelihood=likelihood)
        expected = mcelbo.elbo(x, mu, mu, decoder, num_samples=3, likelihood=likelihood, seed=1)
        assert torch.equal(criterion(x, mu, mu, decoder, seed=1), expected.loss)
    assert repr(Bernoulli()) == "Bernoulli()"
