"""The cells: what a pixel adds to the error T, as a function of the decoder's output y and the pixel x.

A cell is one small file: its formula for kernels and for arrays, each with its derivatives, and the output activations
that a decoder may end with. It says nothing of activations' slopes and pixel weights, which are the same for all cells.
"""

from __future__ import annotations

from mcelbo_kernels.numerics.cells.bernoulli import BERNOULLI
from mcelbo_kernels.numerics.cells.family import Family
from mcelbo_kernels.numerics.cells.squared_error import SQUARED_ERROR

__all__ = ["BY_NAME", "Family"]

BY_NAME = {
    "squared_error": SQUARED_ERROR,
    "bernoulli": BERNOULLI,
}
