"""Compiling for a device that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch


@contextmanager
def compiling_for(capability: tuple[int, int]) -> Iterator[None]:
    """Let numba-cuda compile for a compute capability: what kernels call it compiles for the current device."""
    device = SimpleNamespace(compute_capability=capability)
    with patch("numba.cuda.dispatcher.get_current_device", return_value=device):
        yield
