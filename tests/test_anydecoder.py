"""The chunked path against eager autograd: the same numbers however it is cut, for whatever a decoder does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad

from mcelbo.anydecoder import errors, sum_of_errors
from mcelbo.arguments import prepare
from mcelbo_kernels.problem import CELLS, Problem
from tests.any_decoders import (
    BATCH,
    BUDGETS,
    CUT,
    LATENT,
    SAMPLES,
    WHOLE,
    Data,
    Decoder,
    Made,
    Recorder,
    Tied,
    again,
    assert_close,
    by_maker,
    cut_by,
    data,
    eager,
    function_of_a_leaf,
    function_of_a_result,
    gradients,
    image_mlp,
    leaves_of,
    linear,
    mlp,
    module_with_a_captured_result,
)
from tests.strategies import problems
from tests.torch_twin import named, torch_activation, torch_twin

PLACE = ("seed", "sampler", "datum_offset", "sample_offset")


@pytest.fixture(params=BUDGETS)
def budget(request: pytest.FixtureRequest) -> Iterator[int]:
    with cut_by(request.param) as budget:
        yield budget


@pytest.fixture(params=(CUT, WHOLE), ids=["cut", "whole"])
def cut_or_whole(request: pytest.FixtureRequest) -> Iterator[None]:
    with cut_by(request.param):
        yield


@by_maker
def test_sums_and_their_gradients_are_those_of_eager(make: Callable[[Data], Made], budget: int) -> None:
    d = data()
    made = again(make, d)
    t = eager(d.arguments(), made.decoder)
    theirs = gradients(t.mean(1).sum(), leaves_of(made, d))
    made = again(make, d)
    sums = sum_of_errors(d.arguments(), made.decoder)
    ours = gradients(sums.total, leaves_of(made, d))
    assert_close(sums.total, t.mean(1).sum())
    assert_close(sums.mean, t.detach().mean(1))
    assert_close(sums.squares, t.detach().var(1, correction=0) * SAMPLES)
    assert not sums.mean.requires_grad
    assert not sums.squares.requires_grad
    for our, their in zip(ours, theirs, strict=True):
        assert_close(our, their)


@by_maker
def test_errors_and_their_gradients_are_those_of_eager(make: Callable[[Data], Made], budget: int) -> None:
    d, upstream = data(shared=True), torch.randn(SAMPLES, BATCH, dtype=torch.float64).T
    made = again(make, d)
    t = eager(d.arguments(sampler="antithetic", num_samples=18), made.decoder)[:, :SAMPLES]
    theirs = gradients((upstream * t).sum(), leaves_of(made, d))
    made = again(make, d)
    found = errors(d.arguments(sampler="antithetic", num_samples=18), made.decoder)[:, :SAMPLES]
    ours = gradients((upstream * found).sum(), leaves_of(made, d))
    assert_close(found, t)
    for our, their in zip(ours, theirs, strict=True):
        assert_close(our, their)


def test_weights_shared_by_encoder_and_decoder(budget: int) -> None:
    d, module = data(), Tied()
    encoded = d._replace(mu=d.x.flatten(1) @ module.weight)
    leaves = [module.weight, d.x, d.logvar]
    theirs = gradients(eager(encoded.arguments(), module).mean(1).sum(), leaves)
    encoded = d._replace(mu=d.x.flatten(1) @ module.weight)
    ours = gradients(sum_of_errors(encoded.arguments(), module).total, leaves)
    for our, their in zip(ours, theirs, strict=True):
        assert_close(our, their)


@pytest.mark.parametrize("sampled", [True, False], ids=["drawn", "injected"])
def test_float32_is_as_exact_as_eager(sampled: bool, budget: int) -> None:
    made = image_mlp(data())
    single = mlp().float()
    single.load_state_dict(made.decoder.state_dict())
    eps = torch.randn(BATCH, SAMPLES, LATENT)

    def outcome(d: Data, decoder: Decoder, leaves: list[Tensor], ours: bool) -> list[Tensor]:
        a = d.arguments(**({} if sampled else {"eps": eps.to(d.x.dtype), "seed": None}))
        total = sum_of_errors(a, decoder).total if ours else eager(a, decoder).mean(1).sum()
        return [total.detach(), *gradients(total, leaves)]

    wide, narrow = data(), data(torch.float32)
    with torch.no_grad():
        for w, n in zip([*wide, *made.leaves], [*narrow, *single.parameters()], strict=True):
            w.copy_(n)
    exact = outcome(wide, made.decoder, [*wide, *made.leaves], False)
    theirs = outcome(narrow, single, [*narrow, *single.parameters()], False)
    ours = outcome(narrow, single, [*narrow, *single.parameters()], True)
    for our, their, true in zip(ours, theirs, exact, strict=True):
        assert our.dtype == torch.float32
        # tiny: the noise itself may differ by 2 ulp between precisions, and few results make their largest error small
        tiny = 4 * torch.finfo(torch.float32).eps * true.abs().max()
        assert (our - true).abs().max() <= 2 * (their - true).abs().max() + tiny


def test_chunks_change_nothing_beyond_rounding() -> None:
    d, module = data(), mlp()
    results = []
    for budget in BUDGETS:
        with cut_by(budget):
            sums = sum_of_errors(d.arguments(), module)
            results.append([*sums, errors(d.arguments(), module), *gradients(sums.total, [*d, *module.parameters()])])
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert_close(one, other)


def test_a_module_runs_once_on_every_sample(budget: int) -> None:
    d, module = data(), Recorder(mlp())
    sum_of_errors(d.arguments(), module).total.backward()
    assert sum(module.seen) == BATCH * SAMPLES


@pytest.mark.parametrize("how", [sum_of_errors, errors])
def test_bernoulli_is_that_of_eager(how: Callable[..., Any], budget: int) -> None:
    d, module = data(shared=True), mlp()[:-1]
    upstream = torch.ones(BATCH, SAMPLES).double() if how is sum_of_errors else torch.randn(BATCH, SAMPLES).double()
    t = eager(d.arguments(cell="bernoulli"), module)
    theirs = gradients((upstream * t).sum() / SAMPLES, [*d, *module.parameters()])
    found = how(d.arguments(cell="bernoulli"), module)
    total = found.total if how is sum_of_errors else (upstream * found).sum() / SAMPLES
    assert_close(total, (upstream * t).sum() / SAMPLES)
    for our, their in zip(gradients(total, [*d, *module.parameters()]), theirs, strict=True):
        assert_close(our, their)


@pytest.mark.parametrize("how", [sum_of_errors, errors])
def test_nothing_is_computed_for_gradients_under_no_grad(how: Callable[..., Any], budget: int) -> None:
    d, grad_modes = data(), []

    class Watched(nn.Sequential):
        def forward(self, z: Tensor) -> Tensor:
            y = super().forward(z)
            grad_modes.append(y.requires_grad)
            return y

    module = Watched(*mlp())
    with torch.no_grad():
        result = how(d.arguments(), module)
    assert not any(grad_modes)
    assert not (result.total if how is sum_of_errors else result).requires_grad
    expected = eager(d.arguments(), module)
    assert_close(
        result.total if how is sum_of_errors else result,
        (expected.mean(1).sum() if how is sum_of_errors else expected).detach(),
    )


@pytest.mark.usefixtures("cut_or_whole")
@pytest.mark.parametrize("how", [sum_of_errors, errors])
@pytest.mark.parametrize("make", [image_mlp, function_of_a_leaf, linear])
def test_only_gradients_that_are_asked_for(how: Callable[..., Any], make: Callable[[Data], Made]) -> None:
    for wanted in range(4):
        d = data()
        made = make(d)
        for leaf in (*made.leaves, *d):
            leaf.requires_grad_(False)
        d[wanted].requires_grad_()
        result = how(d.arguments(), made.decoder)
        total = result.total if how is sum_of_errors else result.sum() / SAMPLES
        (ours,) = gradients(total, [d[wanted]])
        (theirs,) = gradients(eager(d.arguments(), made.decoder).mean(1).sum(), [d[wanted]])
        assert_close(ours, theirs)
        assert all(leaf.grad is None for leaf in (*made.leaves, *d) if not leaf.requires_grad)


@pytest.mark.usefixtures("cut_or_whole")
@pytest.mark.parametrize("make", [image_mlp, module_with_a_captured_result])
@pytest.mark.parametrize("how", [sum_of_errors, errors])
def test_backward_twice_with_two_upstream_gradients(how: Callable[..., Any], make: Callable[[Data], Made]) -> None:
    d = data()
    made = make(d)
    result = how(d.arguments(), made.decoder)
    result = result.total if how is sum_of_errors else result.mean(1).sum()
    first = gradients(2.0 * result, leaves_of(made, d), retain_graph=True)
    second = gradients(-3.0 * result, leaves_of(made, d))
    for one, other in zip(first, second, strict=True):
        assert_close(None if one is None else -1.5 * one, other)


@pytest.mark.usefixtures("cut_or_whole")
@pytest.mark.parametrize("how", [sum_of_errors, errors])
def test_upstream_gradients_in_a_batch(how: Callable[..., Any]) -> None:
    d = data()
    made = image_mlp(d)
    result = how(d.arguments(), made.decoder)
    result = result.total if how is sum_of_errors else result
    upstreams = torch.randn(3, *result.shape, dtype=result.dtype)
    leaves = [leaf for leaf in leaves_of(made, d) if leaf.requires_grad]
    batched = torch.autograd.grad(result, leaves, upstreams, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(result, leaves, upstream, retain_graph=True) for upstream in upstreams]
    for found, *expected in zip(batched, *each, strict=True):
        assert_close(found, torch.stack(expected))


@pytest.mark.usefixtures("cut_or_whole")
@pytest.mark.parametrize("make", [image_mlp, function_of_a_result])
@pytest.mark.parametrize("how", [sum_of_errors, errors])
def test_a_second_derivative_raises(how: Callable[..., Any], make: Callable[[Data], Made]) -> None:
    d = data()
    made = make(d)
    result = how(d.arguments(), made.decoder)
    total = result.total if how is sum_of_errors else result.sum()
    for leaf in leaves_of(made, d):
        (slope,) = torch.autograd.grad(total, leaf, create_graph=True, allow_unused=True)
        if slope is not None:
            with pytest.raises(RuntimeError, match="second derivative"):
                (total + slope.square().sum()).backward(retain_graph=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's forward mode warns of itself
def test_forward_mode_is_refused(budget: int) -> None:
    d, module = data(), mlp().requires_grad_(False)
    with forward_ad.dual_level():
        dual = d._replace(mu=forward_ad.make_dual(d.mu.detach(), torch.ones_like(d.mu)))
        for how in (sum_of_errors, errors):
            with pytest.raises(RuntimeError, match="no forward-mode derivative"), torch.no_grad():
                how(dual.arguments(), module)


@given(problems(dtypes=(np.float64,)), st.sampled_from([1, 30_000, 2**26]))
def test_any_stack_of_layers_on_any_shape(problem: Problem, budget: int) -> None:
    twin, n = torch_twin(problem), problem.draw.num_samples
    leaves = named(twin)
    eps = None if problem.draw.eps is None else torch.tensor(problem.draw.eps)
    place = {} if eps is not None else {name: getattr(problem.draw, name) for name in PLACE}
    a = prepare(twin.x, twin.mu, twin.logvar, weight=twin.weight, num_samples=n, eps=eps, **place)
    a = replace(a, cell=problem.cell)

    def decoder(z: Tensor) -> Tensor:
        for layer, (w, b) in zip(problem.layers, twin.layers, strict=True):
            z = torch_activation(layer.activation, nn.functional.linear(z, w, b))
        return z

    # one sample to a chunk only where there are few
    with cut_by(budget if n < 100 else 30_000 + budget):
        sums = sum_of_errors(a, decoder)
    t = twin.errors.detach()
    assert_close(sums.mean, t.mean(1))
    assert_close(sums.squares, t.var(1, correction=0) * n)
    ours = dict(zip(leaves, torch.autograd.grad(sums.total, list(leaves.values())), strict=True))
    theirs = twin.gradients(np.full(t.shape, 1 / n))
    for name, gradient in ours.items():
        assert_close(gradient, torch.tensor(theirs[name]))


# --- odd data and bad decoders ---


@pytest.mark.parametrize("how", [sum_of_errors, errors])
def test_an_empty_batch_has_zero_gradients(how: Callable[..., Any], budget: int) -> None:
    d, module = data(batch=0), mlp()
    result = how(d.arguments(), module)
    total = result.total if how is sum_of_errors else result.sum()
    assert total == 0
    for gradient, leaf in zip(gradients(total, [*d, *module.parameters()]), [*d, *module.parameters()], strict=True):
        assert_close(gradient, torch.zeros_like(leaf))


@pytest.mark.parametrize("name", ["x", "mu", "logvar", "weight"])
def test_nan_in_the_data_shows_in_its_datum_alone(name: str, budget: int) -> None:
    d, module = data(), mlp()
    with torch.no_grad():
        getattr(d, name).view(BATCH, -1)[2, 1] = torch.nan
    sums, found = sum_of_errors(d.arguments(), module), errors(d.arguments(), module)
    assert sums.total.isnan()
    assert sums.mean.isnan().tolist() == found.isnan().all(1).tolist() == [False, False, True, False, False]
    assert not found[[0, 1, 3, 4]].isnan().any()


@pytest.mark.usefixtures("cut_or_whole")
def test_an_excluded_pixel_may_hold_anything() -> None:
    d, module = data(), mlp()
    with torch.no_grad():
        d.weight[1, 0] = 0
    leaves = [d.mu, d.logvar, *module.parameters()]
    expected = gradients(sum_of_errors(d.arguments(), module).total, leaves)
    with torch.no_grad():
        d.x[1, 0] = torch.nan
    sums = sum_of_errors(d.arguments(), module)
    assert sums.total.isfinite()
    for one, other in zip(gradients(sums.total, leaves), expected, strict=True):
        assert_close(one, other)


# --- other ways to run ---


@pytest.mark.parametrize("cell", CELLS)
@cut_by(CUT)
def test_function_transforms(cell: str) -> None:
    d, module = data(), mlp()
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(how: Callable[..., Tensor], mu: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        a = d._replace(mu=mu).arguments(seed=torch.tensor(11), cell=cell)
        return how(a, lambda z: torch.func.functional_call(module, parameters, (z,)))

    ours = functools.partial(loss, lambda a, decoder: sum_of_errors(a, decoder).total)
    theirs = functools.partial(loss, lambda a, decoder: eager(a, decoder).mean(1).sum())
    mu = d.mu.detach()
    for our, their in zip(
        torch.func.grad(ours, (0, 1))(mu, parameters)[1].values(),
        torch.func.grad(theirs, (0, 1))(mu, parameters)[1].values(),
        strict=True,
    ):
        assert_close(our, their)
    several = torch.stack([mu, mu + 1])
    mapped = torch.vmap(torch.func.grad(ours), in_dims=(0, None))(several, parameters)
    assert_close(mapped, torch.stack([torch.func.grad(theirs)(mu, parameters) for mu in several]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler warns of itself
@pytest.mark.parametrize("cell", CELLS)
@cut_by(CUT)
def test_inside_a_compiled_function(cell: str) -> None:
    d, module = data(), mlp()

    def loss(seed: Tensor) -> Tensor:
        return sum_of_errors(d.arguments(seed=seed, cell=cell), module).total

    compiled = torch.compile(loss, fullgraph=True)
    for seed in (torch.tensor(1), torch.tensor(2)):
        ours, theirs = compiled(seed), loss(seed)
        assert_close(ours.detach(), theirs.detach())
        leaves = [*d, *module.parameters()]
        for our, their in zip(gradients(ours, leaves), gradients(theirs, leaves), strict=True):
            assert_close(our, their)
