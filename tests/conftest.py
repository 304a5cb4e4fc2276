"""Hypothesis profiles, "default" and "thorough" for a long look; a fixture; what becomes of the tests marked "gpu"."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from mcelbo import gpu

# A first example may compile kernels, so neither a deadline nor the slowness of drawing means anything.
_patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("default", _patient, max_examples=50, derandomize="CI" in os.environ)
settings.register_profile("thorough", _patient, max_examples=1000, derandomize=False)
settings.load_profile("default")

np.set_printoptions(threshold=30, edgeitems=2)  # a failing example is a few arrays: show their shapes, not all numbers


@pytest.fixture
def fresh_compiler() -> None:
    """A compiler of torch that has not yet compiled anything."""
    torch._dynamo.reset()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what runs on a GPU where it cannot, and say why."""
    if item.get_closest_marker("gpu") is None:
        return
    if not torch.cuda.is_available():
        pytest.skip("there is no NVIDIA GPU that torch can see")
    obstacle = gpu.obstacle(torch.device("cuda", 0))
    if obstacle is not None:
        pytest.skip(obstacle)
