"""The PTX interpreter: instructions against Python's exact numbers, kernels against NumPy, and every planted fault."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import cuda, float32, int32, int64, types, uint32, uint64

from tests.plain_philox import plain_philox
from tests.ptx import Fault, Program, launch, load, unwritten
from tests.ptx.compile import compiled

Array = np.ndarray[Any, Any]
ROUND = {"f32": np.float32, "f64": np.float64}
