"""Hypothesis profiles: "default", and `pytest --hypothesis-profile=thorough` for a long look."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import HealthCheck, settings

# A first example may compile kernels, so neither a deadline nor the slowness of drawing means anything.
_patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("default", _patient, max_examples=50, derandomize="CI" in os.environ)
settings.register_profile("thorough", _patient, max_examples=1000, derandomize=False)
settings.load_profile("default")

np.set_printoptions(threshold=30, edgeitems=2)  # a failing example is a few arrays: show their shapes, not all numbers
