"""The fused path as autograd, torch.func and torch.compile see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.distributions import Normal
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.checkpoint import checkpoint

import mcelbo
from mcelbo import ops
from mcelbo.arguments import prepare
from mcelbo.decoders import Description, describe
from mcelbo_kernels import cpu
from mcelbo_kernels.problem import CELLS, Need

LOSSES = ("mean", "none", "bernoulli", "per pixel")  # two reductions of the squared error, two bounds
B, D, M, N = 4, 5, 6, 3
SIGMA = torch.linspace(0.5, 2, M)


class Model(nn.Module):
    """A loss of a fused decoder, so that `functional_call` can replace the decoder's parameters."""

    def __init__(self, kind: str = "mean", dtype: torch.dtype = torch.float64, latent: int = D) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Linear(latent, M, dtype=dtype), nn.Identity() if kind == "bernoulli" else nn.Sigmoid()
        )
        self.kind = kind
        likelihoods = {"bernoulli": mcelbo.Bernoulli(), "per pixel": mcelbo.Gaussian(SIGMA.to(dtype))}
        self.likelihood = likelihoods.get(kind)

    def forward(
        self, x: Tensor, mu: Tensor, logvar: Tensor, weight: Tensor, seed: int | Tensor | None = 3, n: int = N
    ) -> Tensor:
        call = (x, mu, logvar, self.decoder)
        draw: dict[str, Any] = {"num_samples": n, "weight": weight, "seed": seed}
        if self.likelihood is None:
            return mcelbo.expected_squared_error(*call, reduction=self.kind, **draw)
        return mcelbo.elbo(*call, likelihood=self.likelihood, **draw).loss


def inputs(dtype: torch.dtype = torch.float64, latent: int = D) -> list[Tensor]:
    """x, mu, logvar, a pixel weight, and the decoder's weight and bias."""
    g = torch.Generator().manual_seed(0)
    shapes = [(B, M), (B, latent), (B, latent), (B, M), (M, latent), (M,)]
    tensors = [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]
    tensors[3] = tensors[3].abs()
    return [t.requires_grad_() for t in tensors]


def loss_of(model: Model) -> Callable[..., Tensor]:
    """Return the loss as a function of `inputs`."""

    def loss(x: Tensor, mu: Tensor, logvar: Tensor, weight: Tensor, w: Tensor, b: Tensor) -> Tensor:
        given = {"decoder.0.weight": w, "decoder.0.bias": b}
        found: Tensor = torch.func.functional_call(model, given, (x, mu, logvar, weight))
        return found

    return loss


def eager(x: Tensor, mu: Tensor, logvar: Tensor, weight: Tensor, w: Tensor, b: Tensor, kind: str = "none") -> Tensor:
    """Compute the loss from the same noise in plain torch operations."""
    eps = mcelbo.noise(3, B, N, mu.shape[1], dtype=x.dtype)
    y = (mu[:, None] + (logvar[:, None] / 2).exp() * eps) @ w.T + b  # (B, n, m)
    squares = (weight[:, None] * (x[:, None] - torch.sigmoid(y)).square()).sum(2)
    if kind in ("mean", "none"):
        return squares if kind == "none" else squares.mean(1).sum() / weight.sum()
    log_p = (
        Normal(torch.sigmoid(y), SIGMA.to(x)).log_prob(x[:, None])
        if kind == "per pixel"
        else (-binary_cross_entropy_with_logits(y, x[:, None].expand(y.shape), reduction="none"))
    )
    kl = (mu.square() + logvar.exp() - 1 - logvar).sum(1) / 2
    return (kl - (weight[:, None] * log_p).sum(2).mean(1)).mean()


def detached(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach() for t in tensors]


def assert_all_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def assert_ops_keep_torchs_contract(cell: str, tensors: list[Tensor], need: list[bool]) -> None:
    """The ops of the losses on `inputs`; `need` goes with x, mu, logvar, weight, eps and the parameters."""
    *data, w, b = detached(tensors)
    output = "identity" if cell == "bernoulli" else "sigmoid"
    settings = (torch.tensor(3), cell, [output], [0.0], "iid", N, 0, 0)
    call = (*data, None, [w, b], *settings)
    torch.library.opcheck(torch.ops.mcelbo.sum_of_errors.default, (*call, need))
    torch.library.opcheck(torch.ops.mcelbo.sum_of_errors.default, (*call, [False] * 7))
    torch.library.opcheck(torch.ops.mcelbo.errors.default, call)
    flat = (*data, None, torch.cat([w.flatten(), b]), [w.shape[1], M], *settings)
    upstream = torch.randn(B, N, dtype=torch.float64)
    torch.library.opcheck(torch.ops.mcelbo.error_gradients.default, (upstream, *flat, need))


@pytest.mark.parametrize("cell", CELLS)
def test_ops_keep_torchs_contract(cell: str) -> None:
    assert_ops_keep_torchs_contract(cell, inputs(), [True, True, False, True, False, True, False])


def test_ops_keep_torchs_contract_in_the_pass_over_few_latents() -> None:
    assert_ops_keep_torchs_contract("squared_error", inputs(latent=1), [False, True, True, False, False, True, True])


def test_noise_keeps_torchs_contract() -> None:
    settings = (2, 4, 3, "antithetic", 1, 2, torch.float32)
    torch.library.opcheck(torch.ops.mcelbo.noise.default, (torch.tensor(3), *settings))


# torch 2.6 warns of itself here
@pytest.mark.filterwarnings("ignore:Please use .torch.vmap.:FutureWarning")
@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_are_those_of_differences_and_of_plain_torch(kind: str) -> None:
    loss, tensors = loss_of(Model(kind)), inputs()
    assert torch.autograd.gradcheck(loss, tensors, check_batched_grad=True)
    value, expected = loss(*tensors), eager(*tensors, kind=kind)
    torch.testing.assert_close(value, expected)
    upstream = torch.randn_like(value)
    assert_all_close(
        torch.autograd.grad(value, tensors, upstream, retain_graph=True),
        torch.autograd.grad(expected, tensors, upstream),
    )


UPSTREAMS: dict[str, Callable[[], Tensor]] = {
    "random": lambda: torch.randn(B, N, dtype=torch.float64),
    "transposed": lambda: torch.randn(N, B, dtype=torch.float64).T,
    "strided": lambda: torch.randn(B, 2 * N, dtype=torch.float64)[:, ::2],
    "one per datum": lambda: torch.randn(B, 1, dtype=torch.float64).expand(B, N),
    "one": lambda: torch.randn((), dtype=torch.float64).expand(B, N),
    "with zeros": lambda: torch.randn(B, N, dtype=torch.float64).relu(),
}


@pytest.mark.parametrize("name", UPSTREAMS)
def test_errors_take_any_upstream_gradient(name: str) -> None:
    tensors, upstream = inputs(), UPSTREAMS[name]()
    found = torch.autograd.grad(loss_of(Model("none"))(*tensors), tensors, upstream)
    assert_all_close(found, torch.autograd.grad(eager(*tensors), tensors, upstream.clone()))


@pytest.mark.parametrize("kind", LOSSES)
def test_a_retained_graph_runs_backward_with_different_upstreams(kind: str) -> None:
    tensors = inputs()
    value = loss_of(Model(kind))(*tensors)
    first = torch.randn_like(value)
    once = torch.autograd.grad(value, tensors, first, retain_graph=True)
    kept = [gradient.clone() for gradient in once]
    torch.autograd.grad(value, tensors, torch.randn_like(value), retain_graph=True)
    assert_all_close(once, kept)
    assert_all_close([-3 * g for g in kept], torch.autograd.grad(value, tensors, -3 * first))


@pytest.mark.parametrize("kind", LOSSES)
def test_layouts_do_not_matter(kind: str) -> None:
    loss, tensors = loss_of(Model(kind)), inputs()
    wide = [torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0] for t in detached(tensors)]
    wide[4] = wide[4].T.contiguous().T
    assert not any(t.is_contiguous() for t in wide)
    found = [t.requires_grad_() for t in wide]
    value, expected = loss(*found), loss(*tensors)
    assert torch.equal(value, expected)
    for a, b in zip(torch.autograd.grad(value.sum(), found), torch.autograd.grad(expected.sum(), tensors), strict=True):
        assert torch.equal(a, b)
    # one datum for all: zero strides, whose gradients are summed
    x, mu, logvar, weight, w, b = tensors
    row = x.detach()[:1].requires_grad_()
    same = loss(row.expand(B, M), mu, logvar, weight, w, b).sum()
    own = loss(row.detach().repeat(B, 1), mu, logvar, weight, w, b).sum()
    torch.testing.assert_close(same, own)
    each = row.detach().repeat(B, 1).requires_grad_()
    (rows,) = torch.autograd.grad(loss(each, mu, logvar, weight, w, b).sum(), each)
    torch.testing.assert_close(torch.autograd.grad(same, row)[0], rows.sum(0, keepdim=True))


@pytest.mark.parametrize("kind", ["sum", "none"])
def test_an_empty_batch_is_a_batch(kind: str) -> None:
    model = Model(kind)
    x, mu = torch.empty(0, M, dtype=torch.float64), torch.empty(0, D, dtype=torch.float64, requires_grad=True)
    value = model(x, mu, mu, torch.empty(0, M, dtype=torch.float64))
    value.sum().backward()
    assert value.shape == (() if kind == "sum" else (0, N))
    assert value.sum() == 0
    assert mu.grad is not None
    assert mu.grad.shape == (0, D)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def spied(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Need]:
    """Record what gradients a kernel is asked for."""
    kernel, asked = getattr(cpu, name), []

    def spy(*arguments: Any) -> Any:
        asked.extend(argument for argument in arguments if isinstance(argument, Need))
        return kernel(*arguments)

    monkeypatch.setattr(cpu, name, spy)
    return asked


def test_nothing_is_computed_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Need(False, False, False, False, ((False, False),))
    asked = spied(monkeypatch, "value_and_gradients")
    tensors, loss = inputs(), loss_of(Model())
    with torch.no_grad():
        loss(*tensors)
    with torch.inference_mode():
        loss(*tensors)
    loss(*detached(tensors))
    assert asked == [nothing] * 3
    for index, wanted in [
        (0, nothing._replace(x=True)),
        (1, nothing._replace(mu=True)),
        (2, nothing._replace(logvar=True)),
        (3, nothing._replace(weight=True)),
        (4, nothing._replace(layers=((True, False),))),
        (5, nothing._replace(layers=((False, True),))),
    ]:
        given = detached(tensors)
        given[index].requires_grad_()
        loss(*given).backward()
        assert asked[-1] == wanted
        assert given[index].grad is not None


def test_errors_compute_gradients_in_backward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spied(monkeypatch, "gradients")
    given = detached(inputs())
    given[1].requires_grad_()
    value = loss_of(Model("none"))(*given)
    assert not asked
    value.sum().backward()
    assert asked == [Need(False, False, True, False, ((False, False),))]


@pytest.mark.parametrize("kind", LOSSES)
def test_a_second_derivative_raises(kind: str) -> None:
    loss, tensors = loss_of(Model(kind)), inputs()
    value = loss(*tensors).sum()
    (gradient,) = torch.autograd.grad(value, tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match="mcelbo's losses have no second derivative"):
        (value + gradient.square().sum()).backward()

    def penalty(mu: Tensor) -> Tensor:
        rest = detached(tensors)
        return torch.func.grad(lambda t: loss(rest[0], t, *rest[2:]).sum())(mu).square().sum()

    with pytest.raises(RuntimeError, match="mcelbo's losses have no second derivative"):
        torch.func.grad(penalty)(tensors[1].detach())


@pytest.mark.parametrize("kind", LOSSES)
def test_a_penalty_on_the_decoders_weights_raises_too(kind: str) -> None:
    loss, tensors = loss_of(Model(kind)), inputs()
    (gradient,) = torch.autograd.grad(loss(*tensors).sum(), tensors[4], create_graph=True)
    with pytest.raises(RuntimeError, match="mcelbo's losses have no second derivative"):
        gradient.square().sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's forward mode warns of itself
@pytest.mark.parametrize("kind", LOSSES)
def test_forward_mode_raises_and_drops_nothing(kind: str) -> None:
    loss = loss_of(Model(kind))
    x, mu, *rest = detached(inputs())
    with pytest.raises(RuntimeError, match="mcelbo's losses have no forward-mode derivative"):
        torch.func.jvp(lambda t: loss(x, t, *rest), (mu,), (mu,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        loss(x, mu, *rest[:2], forward_ad.make_dual(rest[2], rest[2]), rest[3])


@pytest.mark.parametrize("kind", LOSSES)
def test_torch_func_gives_the_gradients_of_backward(kind: str) -> None:
    loss, tensors = loss_of(Model(kind)), inputs()
    numbers = tuple(range(len(tensors)))
    value = loss(*tensors)
    upstream = torch.randn_like(value)
    expected = torch.autograd.grad(value, tensors, upstream, retain_graph=True)
    _, pull = torch.func.vjp(loss, *detached(tensors))
    assert_all_close(pull(upstream), expected)
    scalar = torch.func.grad(lambda *t: (loss(*t) * upstream).sum(), argnums=numbers)
    assert_all_close(scalar(*detached(tensors)), expected)
    jacobian = torch.func.jacrev(loss, argnums=numbers)(*detached(tensors))
    batched = torch.autograd.grad(
        value, tensors, torch.eye(value.numel()).double().reshape(-1, *value.shape), is_grads_batched=True
    )
    assert_all_close([j.reshape(b.shape) for j, b in zip(jacobian, batched, strict=True)], batched)


@pytest.mark.parametrize("kind", LOSSES)
def test_vmap_is_a_loop(kind: str) -> None:
    loss = loss_of(Model(kind))
    x, mu, logvar, weight, _w, b = detached(inputs())
    many = torch.randn(3, M, D, dtype=torch.float64)
    mapped = torch.func.vmap(lambda v: loss(x, mu, logvar, weight, v, b))(many)
    assert torch.equal(mapped, torch.stack([loss(x, mu, logvar, weight, v, b) for v in many]))
    # an ensemble: one gradient for each decoder, the data shared; and data along another axis than the first
    wanted = torch.func.grad(lambda v, t: loss(t, mu, logvar, weight, v, b).sin().sum(), argnums=(0, 1))
    data = torch.stack([x, 2 * x, 3 * x], 1)
    for gradient, rows in zip(
        torch.func.vmap(wanted, in_dims=(0, 1))(many, data),
        zip(*(wanted(v, t) for v, t in zip(many, data.unbind(1), strict=True)), strict=True),
        strict=True,
    ):
        assert torch.equal(gradient, torch.stack(rows))


@pytest.mark.parametrize("kind", ["mean", "none"])
def test_torch_func_transforms_the_pass_over_few_latents(kind: str) -> None:
    loss = loss_of(Model(kind, latent=1))
    x, mu, logvar, weight, w, b = detached(inputs(latent=1))

    def of_posterior_and_decoder(*given: Tensor) -> Tensor:
        return loss(x, *given[:2], weight, *given[2:]).sin().sum()

    def of_plain_torch(*given: Tensor) -> Tensor:
        return eager(x, *given[:2], weight, *given[2:], kind=kind).sin().sum()

    many = [torch.stack([t, 2 * t, -t]) for t in (mu, logvar, w, b)]
    found, expected = (
        torch.func.vmap(torch.func.grad(f, argnums=(0, 1, 2, 3)))(*many)
        for f in (of_posterior_and_decoder, of_plain_torch)
    )
    assert_all_close(found, expected)


def test_vmap_over_products_with_one_upstream_gradient() -> None:
    """Then the gradients come in a batch, and the upstream gradient does not."""
    x, logvar, many = torch.rand(3, 5), torch.zeros(3, 2), torch.randn(4, 3, 2)
    decoder = nn.Sequential(nn.Linear(2, 5), nn.Sigmoid())

    def loss(mu: Tensor) -> Tensor:
        return mcelbo.expected_squared_error(x, mu, logvar, decoder, num_samples=8, seed=1)

    def pulled_back(mu: Tensor) -> Tensor:
        _, backward = torch.func.vjp(loss, mu)
        (gradient,) = backward(torch.tensor(2.0))
        return gradient

    expected = torch.stack([2 * torch.func.grad(loss)(mu) for mu in many])
    torch.testing.assert_close(torch.func.vmap(pulled_back)(many), expected)


def test_vmap_maps_the_seed() -> None:
    model = Model("none")
    x, mu, logvar, weight, *_ = detached(inputs())
    seeds = torch.tensor([1, 2, 1])
    found = torch.func.vmap(lambda seed: model(x, mu, logvar, weight, seed))(seeds)
    assert torch.equal(found, torch.stack([model(x, mu, logvar, weight, seed) for seed in (1, 2, 1)]))
    drawn = torch.func.vmap(lambda t: model(t, mu, logvar, weight, None), randomness="different")(x.expand(3, B, M))
    assert not torch.equal(drawn[0], drawn[1])
    eps = torch.func.vmap(lambda seed: mcelbo.noise(seed, 2, 3, 1))(seeds)
    assert torch.equal(eps[1], mcelbo.noise(2, 2, 3, 1))
    assert torch.equal(eps[0], eps[2])


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler warns of itself
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("kind", LOSSES)
def test_compiled_is_eager_and_no_seed_compiles_again(kind: str, backend: str) -> None:
    model, tensors = Model(kind), inputs()[:4]
    tensors = [*tensors, *model.parameters()]
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for seed in (1, 2, 3):
        found = compiled(*tensors[:4], torch.tensor(seed))
        expected = model(*tensors[:4], torch.tensor(seed))
        torch.testing.assert_close(found, expected)
        assert_all_close(
            torch.autograd.grad(found.sin().sum(), tensors), torch.autograd.grad(expected.sin().sum(), tensors)
        )
    assert counter.frame_count == 1
    drawn = []
    for state in (5, 5, 6):
        torch.manual_seed(state)
        drawn.append(compiled(*tensors[:4], None))
    assert counter.frame_count == 2
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    with torch.no_grad():
        torch.testing.assert_close(compiled(*tensors[:4], torch.tensor(3)), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_refuses_a_second_derivative_and_torch_func() -> None:
    model = Model()
    x, mu, logvar, weight, *_ = inputs()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(x, mu, logvar, weight), mu, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient.sum().backward()

    def inside(t: Tensor) -> Tensor:
        found: Tensor = torch.func.grad(lambda u: model(x.detach(), u, logvar.detach(), weight.detach()))(t)
        return found

    with pytest.raises(Exception, match=r"torch\.compile around torch\.func transforms"):
        torch.compile(inside, fullgraph=True, backend="aot_eager")(mu.detach())


def test_checkpointing_draws_the_same_noise_again() -> None:
    model, tensors = Model(), inputs()[:4]

    def loss(*given: Tensor) -> Tensor:
        found: Tensor = model(*given, None)
        return found

    torch.manual_seed(1)
    found = torch.autograd.grad(checkpoint(loss, *tensors, use_reentrant=False), tensors)
    torch.manual_seed(1)
    assert_all_close(found, torch.autograd.grad(loss(*tensors), tensors))


def test_autocast_computes_in_float32() -> None:
    encoder, decoder = nn.Linear(M, 2 * D), nn.Linear(D, M)
    x = torch.rand(B, M)
    with torch.autocast("cpu", torch.bfloat16):
        h = encoder(x)
        loss = mcelbo.expected_squared_error(x, h[:, :D], h[:, D:], decoder, num_samples=N, seed=1)
    assert h.dtype == torch.bfloat16
    mu, logvar = h.float().split(D, 1)
    expected = mcelbo.expected_squared_error(x, mu, logvar, decoder, num_samples=N, seed=1)
    assert torch.equal(loss, expected)
    assert loss.dtype == torch.float32
    found = torch.autograd.grad(loss, [*encoder.parameters(), *decoder.parameters()], retain_graph=True)
    assert_all_close(found, torch.autograd.grad(expected, [*encoder.parameters(), *decoder.parameters()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_those_of_the_errors(dtype: torch.dtype) -> None:
    x, mu, logvar, weight, *_ = detached(inputs(dtype))
    description = describe(Model(dtype=dtype).decoder)
    assert isinstance(description, Description)
    arguments = prepare(x, mu, logvar, num_samples=5, weight=weight, seed=1)
    sums, errors = ops.sum_of_errors(arguments, description), ops.errors(arguments, description).detach().double()
    assert sums.total.dtype == dtype
    assert not sums.mean.requires_grad
    assert not sums.squares.requires_grad
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 0.0}  # a few roundings of sums of positive terms
    torch.testing.assert_close(sums.mean, errors.mean(1), **tolerance)
    torch.testing.assert_close(sums.total.detach().double(), errors.mean(1).sum(), **tolerance)
    spread = 8 * torch.finfo(dtype).eps * errors.max().item() ** 2 * errors.shape[1]
    torch.testing.assert_close(sums.squares, errors.var(1) * 4, rtol=0.0, atol=spread)
