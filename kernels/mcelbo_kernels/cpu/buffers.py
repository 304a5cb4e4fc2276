"""What a pass reads, and where it writes: the arrays that are handed to kernels.

Batch B, n samples, d latents; layer l takes I inputs to O outputs. A matrix of rows, one a sample, lies in panels of
`width` columns: column j of row q is element [j // width, q, j % width] of (panels, capacity, width), so that a tile's
rows are neighbours. P columns is short for ceil(columns / width) panels; the pixels are padded to M, whole panels.
"""

from __future__ import annotations

from typing import NamedTuple

from mcelbo_kernels._compile import part
from mcelbo_kernels.cpu.noise import Key, SobolKey
from mcelbo_kernels.problem import Array

# Columns of `Inputs.layers`.
INPUTS = 0  # I
OUTPUTS = 1  # O
ACTIVATION = 2  # which of the cell's hidden activations follows
WEIGHT = 3  # address of the weight (O, I)
BIAS = 4  # address of the bias (O,)
PANELS = 5  # in `Chunk.weights`: (P O, I + 1, width), for each panel of outputs the weight's rows, then the bias
TRANSPOSED = 6  # in `Chunk.weights`: (P I, O, width), for each panel of inputs the weight's columns
LEFT = 7  # in `Chunk.values`: (P (I + 1), capacity, width), the layer's input h, then 1 for the bias
OUTPUT = 8  # in `Chunk.values`: (P O, capacity, width), the activation's slope, then da in its place
SCALED = 8  # of a thin layer, in `Chunk.values`: (1, capacity, width), g h; h itself where all samples weigh the same
TOTAL = 9  # in `Totals.layers`: (P O, I + 1, width), the gradient of PANELS; negative where nobody needs it
WEIGHT_GRADIENT = 10  # address of the result (O, I), or 0
BIAS_GRADIENT = 11  # address of the result (O,), or 0
FIELDS = 12


class Inputs(NamedTuple):
    """What a pass reads."""

    x: Array  # (B, M)
    weight: Array  # (B or 1, M), or empty where nothing is weighted
    weight_stride: int  # M, or 0 where the batch shares the weights
    mu: Array  # (B, d)
    sigma: Array  # (B, d)
    layers: Array  # (L, FIELDS) int64
    parameters: Array  # (L,) the activations'
    eps: Array  # (B, n, d), or empty
    centre: Array  # (B, M) of a quadratic layer, or empty
    upstream: Array  # (B, n) the samples' weights g, or empty where they are 1
    key: Key | SobolKey  # what the noise is drawn from
    num_samples: int
    lowest: int  # the first layer whose da is needed: -1 where dz is
    padding: float  # the pre-activation behind the pixels, which are 0 there
    scale: float  # what the layers' gradients are multiplied with in the end


class Chunk(NamedTuple):
    """The buffers of one chunk of up to `capacity` rows; those that nobody needs are empty."""

    datum: Array  # (capacity,) the datum that a row belongs to
    g: Array  # (capacity,) the weight of a sample
    weights: Array  # the packed layers: the same for every chunk
    values: Array  # each layer's input and da
    spread: Array  # (P d, capacity, width) sigma eps
    dz: Array  # (P d, capacity, width)
    dx: Array  # (P M, capacity, width)
    dw: Array  # (P M, capacity, width)
    errors: Array  # (capacity,) float64
    sums: Array  # (tasks, P O (I + 1) width), each task's gradients of a thin layer's weights, or (tasks, 0)


class Scratch(NamedTuple):
    """One thread's buffers, for a task of up to `tiles` tiles; or those of all threads, with one more axis in front."""

    eps: Array  # (tiles rows, d)
    sums: Array  # (1, rows, width): one tile's results
    partial: Array  # (tiles, rows, lanes): errors, lane by lane
    dz: Array  # (tiles rows, d, lanes): gradients by the latents of a thin layer, lane by lane


@part
def own_scratch(scratches, number):
    """Return the buffers of one thread."""
    return Scratch(scratches.eps[number], scratches.sums[number], scratches.partial[number], scratches.dz[number])


class Totals(NamedTuple):
    """The sums of a pass in float64; those that nobody needs are empty."""

    errors: Array  # (B n,) in the problem's precision
    moments: Array  # (B, 3): shift, sum of T - shift, sum of (T - shift)^2
    layers: Array  # the gradients of the packed layers
    mu: Array  # (B, d)
    logvar: Array  # (B, d)
    x: Array  # (B, M)
    weight: Array  # (B or 1, M)


def contiguous(array: Array) -> Array:
    """Return the array, or a copy where it is strided or read-only: a kernel is compiled for one layout."""
    return array if array.flags.c_contiguous and array.flags.writeable else array.copy(order="C")


def address(array: Array | None) -> int:
    """Return where the array's data begin, 0 for None."""
    return 0 if array is None else array.__array_interface__["data"][0]
