"""What a pass reads, and where it writes: the arrays that are handed to kernels.

Batch B, n samples, d latents; the pixels are padded to M, P whole panels of `width` pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mcelbo_kernels.cpu.noise import Key, SobolKey
from mcelbo_kernels.problem import Array


class Inputs(NamedTuple):
    """What a pass reads."""

    x: Array  # (B, M)
    weight: Array  # (B or 1, M), or empty where nothing is weighted
    weight_stride: int  # M, or 0 where the batch shares the weights
    mu: Array  # (B, d)
    sigma: Array  # (B, d)
    panels: Array  # (P, d + 1, width): for each panel the d rows of W^T, then the bias
    parameter: Any  # the activation's
    eps: Array  # (B, n, d), or empty
    key: Key | SobolKey  # what the noise is drawn from
    num_samples: int


class Chunk(NamedTuple):
    """The buffers of one chunk of up to `capacity` rows; those that nobody needs are empty."""

    datum: Array  # (capacity,) the datum that a row belongs to
    g: Array  # (capacity,) the weight of a sample
    eps: Array  # (capacity, d)
    z: Array  # (capacity, D): z, then 1 for the bias, then zeros up to a whole number of tile rows
    a: Array  # (P, capacity, width): pre-activations, then da in their place
    dx: Array  # (P, capacity, width)
    dw: Array  # (P, capacity, width)
    errors: Array  # (capacity,) float64
    dz: Array  # (capacity, d + 1): the last column is padding


class Scratch(NamedTuple):
    """One thread's buffers."""

    a: Array  # (1, rows, width): one tile of pre-activations, where no gradient is needed
    column: Array  # (d, rows): one tile's z, latent by latent
    partial: Array  # (rows, lanes): one tile's errors, lane by lane
    sums: Array  # (rows, width): one tile of a weight gradient


class Totals(NamedTuple):
    """The sums of a pass in float64; those that nobody needs are empty."""

    errors: Array  # (B n,) in the problem's precision
    moments: Array  # (B, 3): shift, sum of T - shift, sum of (T - shift)^2
    panels: Array  # (P, D, width)
    mu: Array  # (B, d)
    logvar: Array  # (B, d)
    x: Array  # (B, M)
    weight: Array  # (B or 1, M)


def contiguous(array: Array) -> Array:
    """Return the array, or a copy where it is strided or read-only: a kernel is compiled for one layout."""
    return array if array.flags.c_contiguous and array.flags.writeable else array.copy(order="C")
