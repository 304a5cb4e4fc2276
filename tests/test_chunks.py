"""How calls are cut, and that what a decoder does beside computing is the same for chunks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcelbo.anydecoder import errors, sum_of_errors
from mcelbo.arguments import Arguments, prepare
from mcelbo.sampling import draw
from tests.any_decoders import (
    BATCH,
    CUT,
    LATENT,
    PIXELS,
    SAMPLES,
    WHOLE,
    Decoder,
    Recorder,
    assert_close,
    cut_by,
    data,
    eager,
    gradients,
    mlp,
)


@pytest.fixture(params=(CUT, WHOLE), ids=["cut", "whole"])
def cut_or_whole(request: pytest.FixtureRequest) -> Iterator[None]:
    with cut_by(request.param):
        yield


@cut_by(CUT)
def test_chunks_are_ragged_and_do_not_grow_with_the_samples() -> None:
    d, longest = data(), []
    for n in (SAMPLES, 10 * SAMPLES):
        module = Recorder(mlp())
        sum_of_errors(d.arguments(num_samples=n), module).total.backward()
        errors(d.arguments(num_samples=n), module).sum().backward()
        longest.append(max(module.seen))
        assert len(set(module.seen)) > 1
    assert longest[0] == longest[1] < BATCH * SAMPLES


@cut_by(2**20)
def test_chunks_follow_what_the_decoder_holds() -> None:
    d, wide = data(torch.float32), 4000
    module = Recorder(nn.Sequential(nn.Linear(LATENT, wide), nn.Tanh(), nn.Linear(wide, PIXELS)))
    sum_of_errors(d.arguments(num_samples=200), module)
    # two results of 4,000 float32 a sample; the first chunk is cut before this is known
    assert max(module.seen[1:]) * 2 * wide * 4 <= 2**20


# --- modules that do more than compute ---


@pytest.mark.usefixtures("cut_or_whole")
@pytest.mark.parametrize("how", [sum_of_errors, errors])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("training", "tracked"), [(True, True), (False, True), (False, False)])
def test_batch_norm_sees_the_batch_that_it_sees_in_eager(
    how: Callable[..., Any], training: bool, tracked: bool, wrapped: bool
) -> None:
    def made() -> nn.Module:
        torch.manual_seed(2)
        return (
            nn.Sequential(nn.Linear(LATENT, 9), nn.BatchNorm1d(9, track_running_stats=tracked), nn.Linear(9, PIXELS))
            .double()
            .train(training)
        )

    d, ours, theirs = data(), made(), made()
    t = eager(d.arguments(), theirs)
    expected = gradients(t.mean(1).sum(), [*d, *theirs.parameters()])
    result = how(d.arguments(), ours.forward if wrapped else ours)
    total = result.total if how is sum_of_errors else result.mean(1).sum()
    assert_close(total, t.mean(1).sum())
    for our, their in zip(gradients(total, [*d, *ours.parameters()]), expected, strict=True):
        assert_close(our, their)
    for our, their in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(our, their)


def normalised(layer: nn.Module) -> nn.Module:
    """A decoder whose hidden layer is normalised."""
    return nn.Sequential(nn.Linear(LATENT, 9), layer, nn.Flatten(), nn.Linear(9, PIXELS)).double()


def called(module: nn.Module) -> Decoder:
    """A function around a module."""
    return lambda z: module(z)


@pytest.mark.parametrize("how", [sum_of_errors, errors])
def test_a_function_around_batch_norm_warns(how: Callable[..., Any]) -> None:
    module, a = normalised(nn.BatchNorm1d(9)), data().arguments()
    with cut_by(CUT), pytest.warns(UserWarning, match="normalises samples by the statistics of those beside them"):
        how(a, called(module))
    # nothing else warns, which would be an error
    with cut_by(WHOLE):
        how(a, called(module))
    of_images = nn.Sequential(nn.Unflatten(1, (1, 9)), nn.InstanceNorm1d(1))
    for other in (module.eval(), normalised(of_images), normalised(nn.LayerNorm(9))):
        with cut_by(CUT):
            how(a, called(other))


class Scaled(nn.Module):
    """Multiplies by a scale of its own and a random mask, which it notes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.dropout = nn.Parameter(torch.ones(PIXELS, dtype=torch.float64)), nn.Dropout(0.5)

    def forward(self, z: Tensor) -> Tensor:
        return self.dropout(self.scale.expand(len(z), PIXELS))


@pytest.mark.usefixtures("cut_or_whole")
@pytest.mark.parametrize("how", [sum_of_errors, errors])
@pytest.mark.parametrize("wrapped", [False, True])
def test_dropout_of_value_and_gradient_is_the_same(how: Callable[..., Any], wrapped: bool) -> None:
    d, module = data(), Scaled()
    x = torch.zeros_like(d.x)
    a = prepare(x, d.mu, d.logvar, num_samples=SAMPLES, seed=1)
    result = how(a, module.forward if wrapped else module)
    total = result.total if how is sum_of_errors else result.mean(1).sum()
    total.backward()
    # T = sum_j (s_j mask_ij)^2 at s = 1, where mask is 0 or 2: its derivative by s, summed over j, is 2 T.
    assert_close(module.scale.grad.sum(), 2 * total.detach())
    # The mean of B n m = 2,720 independent squares, 0 or 4 evenly: 5 standard errors, one false alarm in 1.7 million.
    assert abs(total / (BATCH * PIXELS) - 2) < 5 * 2 / (BATCH * SAMPLES * PIXELS) ** 0.5


@cut_by(CUT)
def test_a_parameter_that_only_some_chunks_use() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = mlp(), mlp()
            self.calls = 0

        def forward(self, z: Tensor) -> Tensor:
            self.calls += 1
            return self.b(z) if self.calls == 2 else self.a(z)

    d, module = data(), Sometimes()
    recorded = Recorder(module)
    sum_of_errors(d.arguments(), recorded).total.backward()
    ours = [p.grad.clone() for p in module.parameters()]
    lengths = [length // BATCH for length in recorded.seen]
    assert len(lengths) > 2
    module.zero_grad()
    a = d.arguments()
    z = a.mu[:, None] + (a.logvar / 2).exp()[:, None] * draw(a, 0, SAMPLES)
    parts = [(module.b if i == 1 else module.a)(part.flatten(0, 1)) for i, part in enumerate(z.split(lengths, dim=1))]
    y = torch.cat([part.reshape(BATCH, -1, PIXELS) for part in parts], dim=1)
    (a.weight[:, None] * (a.x[:, None] - y) ** 2).sum(2).mean(1).sum().backward()
    for our, p in zip(ours, module.parameters(), strict=True):
        assert_close(our, p.grad)


@cut_by(CUT)
def test_a_lazy_module_gets_its_gradients() -> None:
    d, module = data(), nn.Sequential(nn.LazyLinear(PIXELS, dtype=torch.float64))
    ours = gradients(sum_of_errors(d.arguments(), module).total, [])
    assert ours == []
    found = [p.grad.clone() for p in module.parameters()]
    theirs = gradients(eager(d.arguments(), module).mean(1).sum(), list(module.parameters()))
    for our, their in zip(found, theirs, strict=True):
        assert_close(our, their)


@cut_by(CUT)
def test_reentrant_checkpoints_inside_get_their_gradients() -> None:
    d, module = data(), mlp()
    theirs = gradients(eager(d.arguments(), module).mean(1).sum(), list(module.parameters()))
    total = sum_of_errors(d.arguments(), lambda z: checkpoint(module, z, use_reentrant=True)).total
    for our, their in zip(gradients(total, list(module.parameters())), theirs, strict=True):
        assert_close(our, their)


@cut_by(CUT)
def test_parameters_changed_before_a_replay_are_noticed() -> None:
    d, module = data(), mlp()
    found = errors(d.arguments(), module)
    with torch.no_grad():
        module[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="replaced or modified between forward and backward"):
        found.sum().backward()


class Scaling(nn.Module):
    """A decoder with a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * self.inner(z)


def with_another_buffer(arguments: Arguments, module: Scaling) -> None:
    module.scale = torch.tensor(3.0, dtype=torch.float64)


CHANGES: dict[str, Callable[[Arguments, Scaling], Any]] = {
    "seed": lambda arguments, _: arguments.seed.add_(1),
    "logvar": lambda arguments, _: arguments.logvar.add_(1),
    "buffer": with_another_buffer,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@cut_by(CUT)
def test_what_else_is_changed_before_a_replay_is_noticed(change: Callable[[Arguments, Scaling], Any]) -> None:
    d, module = data(), Scaling()
    arguments = d._replace(logvar=d.logvar.detach()).arguments()
    found = errors(arguments, module)
    change(arguments, module)
    with pytest.raises(RuntimeError, match="replaced or modified between forward and backward"):
        found.sum().backward()


@cut_by(CUT)
def test_the_parameters_of_functional_call_are_the_ones_that_count() -> None:
    d, module = data(), mlp()
    fast = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = module

        def forward(self, how: Callable[..., Any]) -> Tensor:
            return how(d.arguments(), self.decoder)

    total = torch.func.functional_call(
        Model(), {"decoder." + name: p for name, p in fast.items()}, (lambda a, m: sum_of_errors(a, m).total,)
    )
    ours = gradients(total, list(fast.values()))
    theirs = gradients(eager(d.arguments(), module).mean(1).sum(), list(module.parameters()))
    for our, their in zip(ours, theirs, strict=True):
        assert_close(our, their)


@cut_by(CUT)
def test_an_interrupt_stops_at_the_next_chunk() -> None:
    seen = []

    def decoder(z: Tensor) -> Tensor:
        seen.append(len(z))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return z.repeat(1, PIXELS)[:, :PIXELS]

    with pytest.raises(KeyboardInterrupt):
        sum_of_errors(data().arguments(), decoder)
    assert len(seen) == 2


# --- precisions ---


@cut_by(CUT)
@pytest.mark.parametrize("how", [sum_of_errors, errors])
def test_autocast_runs_the_decoder_as_eager_does(how: Callable[..., Any]) -> None:
    d, module = data(torch.float32), Recorder(mlp().float())

    def outcome(compute: Callable[[], Tensor]) -> list[Tensor | None]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = compute()
        return [total.detach(), *gradients(total, [*d, *module.parameters()])]

    theirs = outcome(lambda: eager(d.arguments(), module).mean(1).sum())
    module.seen.clear()
    ours = outcome(
        lambda: (
            sum_of_errors(d.arguments(), module).total
            if how is sum_of_errors
            else errors(d.arguments(), module).mean(1).sum()
        )
    )
    assert len(module.seen) > 2
    assert how is errors or sum(module.seen) == BATCH * SAMPLES
    assert ours[0].dtype == torch.float32
    # bfloat16 has 8 bits, of which each of up to 4 roundings on the way takes half an ulp; sums average them
    for our, their in zip(ours, theirs, strict=True):
        assert (our - their).abs().max() <= 4 * 2**-9 * their.abs().max()


@cut_by(CUT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_decoder_in_half_precision_gets_its_samples_in_it(dtype: torch.dtype) -> None:
    d, module, seen = data(torch.float32), mlp().to(dtype), []
    module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    sums = sum_of_errors(d.arguments(), module)
    sums.total.backward()
    assert set(seen) == {dtype}
    assert sums.total.dtype == torch.float32
    assert all(p.grad.dtype == dtype for p in module.parameters())


@pytest.mark.usefixtures("cut_or_whole")
@pytest.mark.parametrize("how", [sum_of_errors, errors])
@pytest.mark.parametrize(
    ("decoder", "error", "message"),
    [
        (
            nn.Linear(LATENT, 31).double(),
            ValueError,
            r"returns 31 pixels but x has shape \(5, 2, 4, 4\), 32 pixels per",
        ),
        (lambda z: z.new_zeros(len(z), 4, 8), ValueError, r"returns shape \(\d+, 4, 8\) for \d+ samples: expected"),
        (
            lambda z: z.new_zeros(PIXELS, len(z)),
            ValueError,
            r"returns shape .* expected \(\d+, 32\) or \(\d+, 2, 4, 4\)",
        ),
        (lambda z: z.new_zeros(len(z) + 1, PIXELS), ValueError, r"returns shape .* expected \(\d+, 32\)"),
        (lambda z: z.new_zeros(()), ValueError, r"returns shape \(\)"),
        (lambda z: (z, z), TypeError, "decoder returns tuple: expected a tensor"),
        (lambda z: z.new_zeros(len(z), PIXELS).to(torch.complex128), TypeError, "decoder returns torch.complex128"),
        (
            lambda z: z.new_zeros(len(z), PIXELS).to("meta"),
            ValueError,
            "returns a tensor on meta and x is on cpu: move",
        ),
    ],
)
def test_what_a_decoder_returns_is_checked(
    how: Callable[..., Any], decoder: Decoder, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        how(data().arguments(), decoder)


MEMORY = """
import resource, sys, torch
from torch import nn
from mcelbo.anydecoder import chunks
from mcelbo.anydecoder import errors, sum_of_errors
from mcelbo.arguments import prepare
torch.set_num_threads(1)
chunks.BUDGET = 8 * 2**20
net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 784))
x, mu, logvar = torch.rand(4, 784), torch.zeros(4, 4, requires_grad=True), torch.zeros(4, 4, requires_grad=True)
def run(n):
    sum_of_errors(prepare(x, mu, logvar, num_samples=n, seed=1), net).total.backward()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
run(100)
before = peak()
run(10_000)
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_is_that_of_one_chunk() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=300)
    # MiB: 40,000 images of 784 float32 are 120, and the graph of all would be over 250. A chunk may take 8, and the
    # allocator as much again.
    assert float(done.stdout) < 16
