"""Which decoders are fused, which are not and why, and that both read the same numbers from them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as pruning

import mcelbo
from mcelbo.decoders import Description, Unfusable, choose, describe
from mcelbo_kernels import reference
from mcelbo_kernels.problem import Activation, Layer

CPU = torch.device("cpu")


class Doubled(nn.Linear):
    def forward(self, z: Tensor) -> Tensor:
        return 2 * super().forward(z)


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def linear(*after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 6), *after)


def with_hook(register: str, hook: Callable[..., Any]) -> nn.Module:
    decoder = linear(nn.Sigmoid())
    getattr(decoder[0], register)(hook)
    return decoder


def with_own_forward() -> nn.Module:
    decoder = nn.Linear(2, 6)
    decoder.forward = lambda z: torch.zeros(len(z), 6)  # type: ignore[method-assign]
    return decoder


def parametrized() -> nn.Module:
    decoder = nn.Linear(2, 6)
    parametrize.register_parametrization(decoder, "weight", Half())
    return decoder


def pruned() -> nn.Module:
    decoder = nn.Linear(2, 6)
    pruning.random_unstructured(decoder, "weight", 0.5)  # type: ignore[no-untyped-call]
    return decoder


def tied() -> nn.Module:
    square = nn.Linear(2, 2)
    return nn.Sequential(square, nn.Tanh(), square)


FUSED: list[tuple[nn.Module, Activation]] = [
    (nn.Linear(2, 6), Activation()),
    (nn.Linear(2, 6, bias=False), Activation()),
    (linear(nn.ReLU()), Activation("relu")),
    (linear(nn.ReLU(inplace=True)), Activation("relu")),
    (linear(nn.LeakyReLU(0.2)), Activation("leaky_relu", 0.2)),
    (linear(nn.Tanh()), Activation("tanh")),
    (linear(nn.Sigmoid()), Activation("sigmoid")),
    (linear(nn.Softplus()), Activation("softplus")),
    (linear(nn.ELU(0.5)), Activation("elu", 0.5)),
    (linear(nn.GELU()), Activation("gelu")),
    (linear(nn.GELU("tanh")), Activation("gelu_tanh")),
    (linear(nn.SiLU()), Activation("silu")),
    (linear(nn.Identity(), nn.Tanh(), nn.Identity()), Activation("tanh")),
    (nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(2, 6)), Activation()),
    (nn.Sequential(nn.Sequential(nn.Linear(2, 6)), nn.Sequential(nn.Tanh())), Activation("tanh")),
    (linear(nn.Unflatten(1, (1, 2, 3)), nn.Sigmoid()), Activation("sigmoid")),
    (linear(nn.Unflatten(-1, (2, -1, 1)), nn.Flatten(), nn.Sigmoid()), Activation("sigmoid")),
    (linear(nn.Dropout(0.5)).eval(), Activation()),
    (linear(nn.Dropout(0.0)), Activation()),
    (linear(nn.Sigmoid()).requires_grad_(False), Activation("sigmoid")),
]


@pytest.mark.parametrize(("decoder", "activation"), FUSED, ids=[str(decoder) for decoder, _ in FUSED])
def test_what_is_recognised_is_fused_and_read_right(decoder: nn.Module, activation: Activation) -> None:
    found = describe(decoder)
    assert isinstance(found, Description)
    assert found.layers[0].activation == activation
    assert mcelbo.explain(decoder).path == "grid"
    # what was read, run by the reference, against the module itself
    decoder = deepcopy(decoder).double().requires_grad_(False)
    found = describe(decoder)
    assert isinstance(found, Description)
    weight, bias, _ = found.layers[0]
    layer = Layer(weight.numpy(), np.zeros(6) if bias is None else bias.numpy(), activation)
    z = 3 * torch.randn(50, 2, dtype=torch.float64)
    decoded = decoder(z)
    assert found.output == decoded.shape[1:]
    torch.testing.assert_close(torch.from_numpy(reference.decode([layer], z.numpy())), decoded.flatten(1))


REFUSED: list[tuple[Any, str]] = [
    (lambda z: z, "decoder is not a module but another callable"),
    (nn.Linear(2, 6).forward, "decoder is not a module but another callable"),
    (nn.Sequential(), "it has no Linear layer"),
    (nn.Identity(), "it has no Linear layer"),
    (nn.Sequential(nn.Tanh(), nn.Linear(2, 6)), "it starts with decoder.0 (Tanh) and not with a Linear layer"),
    (nn.Conv2d(1, 1, 1), "it starts with decoder (Conv2d) and not with a Linear layer"),
    (linear(nn.BatchNorm1d(6)), "decoder.1 (BatchNorm1d("),
    (linear(nn.Softplus(beta=2)), "is not among the layers that are fused"),
    (linear(nn.Softplus(threshold=10)), "is not among the layers that are fused"),
    (linear(nn.Hardtanh()), "decoder.1 (Hardtanh("),
    (linear(nn.Tanh(), nn.Tanh()), "decoder.2 (Tanh()) is a second activation in a row"),
    (linear(nn.Dropout(0.5)), "decoder.1 (Dropout(p=0.5, inplace=False)) is not among the layers that are fused"),
    (linear(nn.Unflatten(1, (2, 3)), nn.Linear(3, 3)), "comes after Unflatten, so it acts on the last axis alone"),
    (linear(nn.Unflatten(1, (2, 2))), "does more than shape the pixels"),
    (linear(nn.Unflatten(1, (4, -1))), "does more than shape the pixels"),
    (linear(nn.Unflatten(0, (1, -1))), "does more than shape the pixels"),
    (linear(nn.Unflatten(1, (2, 3)), nn.Unflatten(1, (2, 1))), "does more than shape the pixels"),
    (linear(nn.Flatten(0, -1)), "decoder.1 (Flatten(start_dim=0, end_dim=-1)) is not among the layers"),
    (Doubled(2, 6), "it starts with decoder (Doubled)"),
    (linear(Doubled(6, 6)), "decoder.1 (Doubled("),
    (nn.LazyLinear(6), "decoder (LazyLinear) knows its shape only after a first call"),
    (with_own_forward(), "decoder (Linear) has a forward method of its own"),
    (with_hook("register_forward_hook", lambda *_: None), "decoder.0 (Linear) has hooks"),
    (with_hook("register_forward_pre_hook", lambda *_: None), "decoder.0 (Linear) has hooks"),
    (with_hook("register_full_backward_hook", lambda *_: None), "decoder.0 (Linear) has hooks"),
    (with_hook("register_full_backward_pre_hook", lambda *_: None), "decoder.0 (Linear) has hooks"),
    (pruned(), "decoder (Linear) has hooks"),
    (parametrized(), "it starts with decoder (ParametrizedLinear)"),
    (parametrizations.weight_norm(nn.Linear(2, 6)), "it starts with decoder (ParametrizedLinear)"),
]

STACKS = [
    (linear(nn.ReLU(), nn.Linear(6, 6)), "2 affine layers, 2 to 6 to 6, with identity output"),
    (
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 6), nn.Sigmoid()),
        "2 affine layers, 2 to 2 to 6, with sigmoid output",
    ),
    (tied(), "2 affine layers"),
]


@pytest.mark.parametrize(("decoder", "words"), STACKS, ids=range(len(STACKS)))
def test_stacks_are_fused(decoder: Any, words: str) -> None:
    found = mcelbo.explain(decoder)
    assert found.path == "grid"
    assert words in found.reason


def test_many_samples_of_a_linear_output_are_a_quadratic_form() -> None:
    x = torch.zeros(5, 784)
    stack = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 784))
    assert mcelbo.explain(stack, x, num_samples=1000).path == "gram"
    assert mcelbo.explain(stack, x, num_samples=10).path == "grid"
    assert mcelbo.explain(stack, x).path == "grid"
    assert mcelbo.explain(nn.Sequential(stack, nn.Sigmoid()), x, num_samples=1000).path == "grid"


@pytest.mark.parametrize(("decoder", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_recognised_takes_the_other_path_and_says_why(decoder: Any, reason: str) -> None:
    found = mcelbo.explain(decoder)
    assert found.path == "any"
    assert reason in found.reason
    assert str(found) == f"any on cpu: the decoder runs on chunks of samples, because {found.reason}"


def test_a_stack_of_layers_is_described_whole() -> None:
    shared = nn.Linear(4, 4, bias=False)
    decoder = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), shared, nn.Tanh(), shared, nn.Unflatten(1, (2, 2)))
    found = describe(decoder)
    assert isinstance(found, Description)
    assert [layer.activation.name for layer in found.layers] == ["relu", "tanh", "identity"]
    assert found.layers[1].weight is found.layers[2].weight is shared.weight
    assert found.layers[0].bias is decoder[0].bias
    assert found.layers[1].bias is None
    assert found.output == (2, 2)


def test_global_hooks_count() -> None:
    decoder = nn.Linear(2, 6)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert isinstance(describe(decoder), Unfusable)
    finally:
        handle.remove()
    assert isinstance(describe(decoder), Description)


def test_parameters_are_read_live() -> None:
    decoder = nn.Linear(2, 6)
    replaced = nn.Parameter(torch.zeros(6, 2))
    decoder.weight = replaced
    found = describe(decoder)
    assert isinstance(found, Description)
    assert found.layers[0].weight is replaced


def test_a_compiled_module_is_seen_through() -> None:
    decoder = linear(nn.Sigmoid())
    compiled = torch.compile(decoder, backend="eager")
    assert mcelbo.explain(compiled).path == "grid"
    compiled.register_forward_hook(lambda *_: None)  # type: ignore[attr-defined]
    assert "has hooks" in mcelbo.explain(compiled).reason


class DistributedDataParallel(nn.Module):
    """Stands for torch's wrapper, which needs a process group."""

    __module__ = "torch.nn.parallel.distributed"

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [lambda ddp: ddp, nn.Sequential, lambda ddp: nn.ModuleList([nn.Sequential(ddp)])])
def test_replicated_decoders_are_refused_however_deep(wrap: Callable[[nn.Module], nn.Module]) -> None:
    decoder = wrap(DistributedDataParallel(nn.Linear(2, 6)))
    with pytest.raises(TypeError, match=r"decoder is wrapped in DistributedDataParallel.*wrap one module that holds"):
        choose(decoder, CPU)


def test_other_devices_take_the_other_path() -> None:
    found = choose(nn.Linear(2, 6), torch.device("mps")).explanation
    assert found == ("any", "mps", "there are no fused kernels for mps tensors")


def test_explain_compares_with_the_data() -> None:
    decoder = linear(nn.Unflatten(1, (1, 2, 3)))
    assert mcelbo.explain(decoder, torch.zeros(5, 1, 2, 3)).path == "grid"
    with pytest.raises(ValueError, match="decoder returns 6 pixels but x has shape"):
        mcelbo.explain(decoder, torch.zeros(5, 7))
    with pytest.raises(ValueError, match="expected \\(6,\\) or \\(3, 2\\) per datum"):
        mcelbo.explain(decoder, torch.zeros(5, 3, 2))
    assert mcelbo.explain(linear(), torch.zeros(5, 3, 2)).path == "grid"


def test_a_stack_that_does_not_fit_is_named_before_it_runs() -> None:
    stack = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 6))
    x, mu = torch.rand(3, 6), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="layer 0 of the decoder takes 2 inputs but mu has 4"):
        mcelbo.expected_squared_error(x, mu, mu, stack, num_samples=2)
    with pytest.raises(TypeError, match=r"weight of layer 0 of the decoder is torch\.float64 and x torch\.float32"):
        mcelbo.expected_squared_error(x, mu[:, :2], mu[:, :2], stack.double(), num_samples=2)
    with pytest.raises(ValueError, match="decoder returns 6 pixels but x has shape"):
        mcelbo.explain(stack, x[:, :5])
    with pytest.raises(TypeError, match=r"x is numpy.ndarray: expected a torch.Tensor"):
        mcelbo.explain(stack, x.numpy())  # type: ignore[arg-type]


def test_frozen_parameters_get_no_gradient_and_tied_ones_the_sum() -> None:
    x, mu = torch.rand(3, 6), torch.randn(3, 2, requires_grad=True)
    decoder = nn.Linear(2, 6)
    decoder.bias.requires_grad_(False)
    mcelbo.expected_squared_error(x, mu, mu, decoder, num_samples=4, seed=1).backward()
    assert decoder.bias.grad is None
    assert decoder.weight.grad is not None
    # a weight that is also the posterior's mean: both ways count
    square, x = nn.Linear(2, 6), torch.rand(6, 6)
    apart = square.weight.detach().clone().requires_grad_()
    zero = torch.zeros(6, 2)
    both = mcelbo.expected_squared_error(x, square.weight, zero, square, num_samples=4, seed=1)
    one = mcelbo.expected_squared_error(x, apart, zero, square, num_samples=4, seed=1)
    (gradient,) = torch.autograd.grad(both, square.weight)
    expected = torch.autograd.grad(one, [apart, square.weight])
    torch.testing.assert_close(gradient, expected[0] + expected[1])
