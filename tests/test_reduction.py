"""The reduction by plain torch operations against the kernel."""

from __future__ import annotations

import pytest
import torch

from mcelbo.anydecoder.reduction import reduced
from mcelbo_kernels.problem import CELLS
from tests.any_decoders import BATCH, PIXELS, data


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_reduction_without_a_kernel_is_that_of_the_kernel(cell: str, shared: bool, weighted: bool) -> None:
    a = data(shared=shared).arguments()
    y, upstream = torch.randn(BATCH, 7, PIXELS, dtype=torch.float64), torch.randn(BATCH, 7, dtype=torch.float64)
    weight = None
    if weighted:
        weight = a.weight.detach().clone()
        weight[:, 3], weight[0, 7] = 0, 0
        y[:, :, 3] = torch.nan
        upstream[1, 1] = torch.inf
    for need in ((False, False, False), (True, True, weighted)):
        found = [reduced(cell, y, a.x, weight, upstream, need, kernel) for kernel in (True, False)]
        for one, other in zip(*found, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other.detach(), rtol=1e-12, atol=1e-12, equal_nan=True)
