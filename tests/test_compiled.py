"""Bounds inside torch.compile, of settings and sizes that differ from call to call: no break, and eager's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mcelbo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's compiler warns of itself
]
NUMBERS = (1.0, 0.5, 0.25)
SETTINGS: dict[str, Callable[[float], dict[str, Any]]] = {
    "beta": lambda number: {"beta": number},
    "sigma": lambda number: {"likelihood": mcelbo.Gaussian(number)},
}


def decoder_of(*shape: int) -> nn.Module:
    """A decoder to data of a shape."""
    return nn.Sequential(nn.Linear(2, torch.Size(shape).numel()), nn.Sigmoid(), nn.Unflatten(1, shape))


def bound(x: Tensor, decoder: Any, **settings: Any) -> Tensor:
    """The loss of posteriors that are all alike."""
    mu, logvar = torch.zeros(len(x), 2), torch.zeros(len(x), 2)
    return mcelbo.elbo(x, mu, logvar, decoder, num_samples=8, seed=1, **settings).loss


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function as a whole."""
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_is_annealed(name: str) -> None:
    x, decoder = torch.rand(3, 11), decoder_of(11)
    found = compiled(lambda number: bound(x, decoder, **SETTINGS[name](number)))
    for number in NUMBERS:
        torch.testing.assert_close(found(number), bound(x, decoder, **SETTINGS[name](number)))


def test_an_annealed_criterion() -> None:
    given = torch.rand(3, 11), torch.zeros(3, 2), torch.zeros(3, 2), decoder_of(11)
    criterion = mcelbo.ELBOLoss(num_samples=8)
    found = compiled(criterion)
    for criterion.beta in NUMBERS:
        torch.testing.assert_close(found(*given, seed=1), criterion(*given, seed=1))


@pytest.mark.parametrize("fused", [True, False])
def test_sizes_that_are_not_known(fused: bool) -> None:
    decoder = decoder_of(11)
    found = compiled(lambda x: bound(x, decoder if fused else lambda z: decoder(z)), dynamic=True)
    for batch in (3, 5):
        x = torch.rand(batch, 11)
        torch.testing.assert_close(found(x), bound(x, decoder))


def test_data_of_several_shapes() -> None:
    found = compiled(bound)
    for shape in ((11,), (12,), (2, 7)):
        x, decoder = torch.rand(3, *shape), decoder_of(*shape)
        torch.testing.assert_close(found(x, decoder), bound(x, decoder))
    with pytest.raises(Exception, match="decoder returns 12 pixels but x has shape"):
        found(torch.rand(3, 11), decoder_of(12))
