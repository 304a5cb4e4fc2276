"""The closed form of the expectation: against many samples, against the formula, and where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mcelbo


def data(batch: int = 5, pixels: int = 12, latent: int = 3) -> tuple[Tensor, Tensor, Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    layer = nn.Linear(latent, pixels, dtype=torch.float64)
    layer.load_state_dict({"weight": normal(pixels, latent), "bias": normal(pixels)})
    return normal(batch, pixels), normal(batch, latent).requires_grad_(), normal(batch, latent).requires_grad_(), layer


@pytest.mark.parametrize("weighting", ["none", "shared", "each"])
def test_it_is_the_limit_of_many_samples(weighting: str) -> None:
    x, mu, logvar, layer = data()
    weights = {"none": None, "shared": torch.rand(12).double(), "each": torch.rand(5, 12).double()}
    leaves = (mu, logvar, *layer.parameters())

    def found(sampler: str) -> list[Tensor]:
        loss = mcelbo.expected_squared_error(
            x, mu, logvar, layer, num_samples=200_000, seed=1, sampler=sampler, weight=weights[weighting]
        )
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    for exact, estimate in zip(found("exact"), found("iid"), strict=True):
        torch.testing.assert_close(estimate, exact, rtol=0.03, atol=0.01)


def test_the_formula() -> None:
    x, mu, logvar, layer = data()
    loss = mcelbo.expected_squared_error(x, mu, logvar, layer, num_samples=1, sampler="exact", reduction="sum")
    residual = x - mu @ layer.weight.T - layer.bias
    spread = layer.weight @ (logvar.exp()[:, :, None] * layer.weight.T)
    expected = residual.square().sum() + spread.diagonal(dim1=1, dim2=2).sum()
    torch.testing.assert_close(loss, expected)


def test_it_has_second_derivatives_and_no_error() -> None:
    x, mu, logvar, layer = data()
    assert torch.autograd.gradgradcheck(
        lambda m, v: mcelbo.expected_squared_error(x, m, v, layer, num_samples=1, sampler="exact"), (mu, logvar)
    )
    bound = mcelbo.elbo(x, mu, logvar, layer, num_samples=1, sampler="exact")
    assert not bound.standard_error().any()


def test_autocast_does_not_matter() -> None:
    x, mu, logvar, layer = (part.float() for part in data())
    call = {"num_samples": 1, "sampler": "exact"}
    with torch.autocast("cpu", torch.bfloat16):
        found = mcelbo.expected_squared_error(x, mu, logvar, layer, **call)
    assert torch.equal(found, mcelbo.expected_squared_error(x, mu, logvar, layer, **call))


def test_a_weight_of_zero_excludes_whatever_the_pixel_holds() -> None:
    x, mu, logvar, layer = data()
    weight = torch.ones(12, dtype=torch.float64)
    weight[4] = 0

    def found(x: Tensor) -> list[Tensor]:
        loss = mcelbo.expected_squared_error(x, mu, logvar, layer, num_samples=1, sampler="exact", weight=weight)
        return [loss.detach(), *torch.autograd.grad(loss, (mu, logvar))]

    dirty = x.clone()
    dirty[:, 4] = torch.nan
    for one, other in zip(found(x), found(dirty), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_where_its_weight_is_not_zero(bad: float) -> None:
    x, mu, logvar, layer = data()
    x[1, 4] = bad
    weight = torch.full((12,), 0.5, dtype=torch.float64)
    bound = mcelbo.elbo(x, mu, logvar, layer, num_samples=1, sampler="exact", weight=weight).bound
    assert torch.equal(bound.isfinite(), torch.arange(5) != 1)


def test_where_there_is_no_closed_form() -> None:
    x, mu, logvar, layer = data()

    def loss(decoder: object, **options: object) -> Tensor:
        return mcelbo.expected_squared_error(x, mu, logvar, decoder, num_samples=2, sampler="exact", **options)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="1 layers, the last with sigmoid output"):
        loss(nn.Sequential(layer, nn.Sigmoid()))
    with pytest.raises(ValueError, match="2 layers, the last with identity output"):
        loss(nn.Sequential(nn.Linear(3, 3, dtype=torch.float64), layer))
    with pytest.raises(ValueError, match="not a module"):
        loss(lambda z: layer(z))
    with pytest.raises(ValueError, match="an expectation has no samples"):
        loss(layer, reduction="none")
    with pytest.raises(ValueError, match="uses no noise"):
        loss(layer, eps=torch.zeros(5, 2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="takes squared errors"):
        mcelbo.elbo(x, mu, logvar, layer, num_samples=2, sampler="exact", likelihood=mcelbo.Bernoulli())
