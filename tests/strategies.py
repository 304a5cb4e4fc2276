"""Hypothesis strategies that all tests of kernels and losses share: problems, and upstream gradients for them.

Sizes, names and seeds are drawn by hypothesis; the numbers in the arrays come from NumPy, seeded by a drawn integer, so
that a failing example shrinks to a small shape rather than to small numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

from mcelbo_kernels.numerics.cells import BY_NAME
from mcelbo_kernels.problem import ACTIVATIONS, CELLS, SAMPLERS, Activation, Draw, Layer, Problem, accepts
from mcelbo_kernels.reference import noise, preactivations
from mcelbo_kernels.reference.activations import activate

Array = NDArray[Any]

ROWS, COLUMNS = (6, 8, 12), (8, 16, 32)  # of every register tile: 6 x 16, 6 x 8, 8 x 8, 12 x 32
LAYOUTS = ("contiguous", "transposed", "strided")
PARAMETERS = {"leaky_relu": (0.01, 0.25), "elu": (1.0, 0.5, 2.0)}
UPSTREAMS = ("ones", "random", "transposed", "strided", "per datum", "constant")


def _beyond(tiles: Sequence[int], most: int) -> list[int]:
    """Sizes above two of the largest tile, up to `most`, that no tile divides."""
    return [size for size in range(2 * max(tiles) + 1, most + 1) if all(size % tile for tile in tiles)]


TINY = st.integers(1, 5)
# A kernel is compiled for each of the fewest latents, see `cpu.thin`, whose tests take them all; none has so many as 5.
FEW_LATENTS = st.sampled_from([1, 5])
RAGGED_ROWS = st.sampled_from(_beyond(ROWS, 35))  # samples, or data where there is one sample of each
RAGGED_PIXELS = st.sampled_from(_beyond(COLUMNS, 95))
RAGGED_LATENTS = st.sampled_from([13, 35, 37, 43])  # more than two rows of tiles, more than one column of the widest
LONG = st.integers(1030, 1100)  # more samples than the longest chunk of rows
SHAPES = {  # batch, samples, pixels, latents
    "any": (TINY, TINY | RAGGED_ROWS, TINY | RAGGED_PIXELS, FEW_LATENTS | RAGGED_LATENTS),
    "ragged": (st.sampled_from([5, 7]), RAGGED_ROWS, RAGGED_PIXELS, RAGGED_LATENTS),
    "once": (RAGGED_ROWS, st.just(1), TINY | RAGGED_PIXELS, FEW_LATENTS | RAGGED_LATENTS),
    "long": (st.integers(1, 2), LONG, TINY, FEW_LATENTS),
}


def laid_out(array: Array, layout: str) -> Array:
    """Return an equal array with other strides: "transposed" is Fortran's order, "strided" skips every other number."""
    if layout == "transposed":
        return np.asfortranarray(array)
    if layout == "strided":
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    return np.ascontiguousarray(array)


@st.composite
def activations(draw: st.DrawFn, names: Sequence[str] = ACTIVATIONS) -> Activation:
    """Draw an activation, with a parameter where it has one."""
    name = draw(st.sampled_from(names))
    return Activation(name, draw(st.sampled_from(PARAMETERS[name])) if name in PARAMETERS else 0.0)


@st.composite
def draws(draw: st.DrawFn, num_samples: int, sampler: str) -> Draw:
    """Draw where in the range of seeds and offsets the noise comes from."""
    odd = draw(st.booleans())
    last = 2**30 if sampler == "sobol" else 2**63  # torch has so many points
    first = draw(st.sampled_from([0, 2, 6, 2**28 - 2, last - 2048]))
    return Draw(
        num_samples,
        seed=draw(st.integers(0, 2**63 - 1)),
        sampler=sampler,
        datum_offset=draw(st.sampled_from([0, 1, 7, 2**31, 2**32 - 64])),
        sample_offset=first + (odd and sampler != "antithetic"),
    )


def away_from_kinks(problem: Problem) -> bool:
    """Whether rounding cannot move a pre-activation across a kink, where the derivative jumps."""
    mu, logvar = (a.astype(np.float64)[:, None, :] for a in (problem.mu, problem.logvar))
    z = mu + np.exp(logvar / 2) * noise(problem.draw, *problem.mu.shape)
    margin = 16 * np.finfo(problem.x.dtype).eps  # of sums of order one
    before = preactivations(problem.layers, z)
    y = activate(problem.layers[-1].activation, before[-1])
    slopes = (BY_NAME[problem.cell].arrays(y + step, problem.x[:, None], np)[1] for step in (margin, -margin))
    return not (np.abs(np.subtract(*slopes)) > 0.1).any() and not any(
        layer.activation.name in ("relu", "leaky_relu", "elu") and (np.abs(a) < margin).any()
        for layer, a in zip(problem.layers, before, strict=True)
    )


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[DTypeLike] = (np.float32, np.float64),
    names: Sequence[str] = ACTIVATIONS,
    outputs: Sequence[str] | None = None,
    cells: Sequence[str] = CELLS,
    min_layers: int = 1,
    max_layers: int = 3,
    samplers: Sequence[str] = (*SAMPLERS, "injected"),
    weights: Sequence[str] = ("none", "shared", "per datum"),
    shapes: Sequence[str] = tuple(SHAPES),
) -> Problem:
    """Draw a problem with numbers of order one; every keyword restricts what may be drawn.

    Parameters
    ----------
    dtypes : of all arrays
    names : of the activations
    outputs : of the last of them, by default the same
    cells : of which those are drawn that accept one of the activations as output
    min_layers, max_layers : fewest and most affine layers of the decoder
    samplers : of `SAMPLERS`, or "injected" for the caller's own noise
    weights : kinds of pixel weight; those that there are hold zeros
    shapes : keys of `SHAPES`
    """
    sampler = draw(st.sampled_from(samplers))
    shape = draw(st.sampled_from(shapes))
    batch, n, pixels, latent = (draw(size) for size in SHAPES[shape])
    n += n % 2 if sampler == "antithetic" else 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    layout = draw(st.sampled_from(LAYOUTS))

    def normal(*size: int, scale: float = 1.0) -> Array:
        return laid_out((scale * rng.standard_normal(size)).astype(dtype), layout)

    hidden = [
        draw(st.integers(1, 5) | st.integers(9, 19)) for _ in range(draw(st.integers(min_layers, max_layers)) - 1)
    ]
    widths = [latent, *hidden, pixels]
    last = outputs or names
    cell = draw(st.sampled_from([cell for cell in cells if any(accepts(cell, name) for name in last)]))
    accepted = [name for name in last if accepts(cell, name)]
    layers = tuple(
        Layer(
            normal(after, before, scale=before**-0.5),
            normal(after, scale=0.5),
            draw(activations(accepted if index == len(hidden) else names)),
        )
        for index, (before, after) in enumerate(pairwise(widths))
    )
    kind = draw(st.sampled_from(weights))
    weight = rng.uniform(0.1, 2.0, (1 if kind == "shared" else batch, pixels))
    weight[rng.random(weight.shape) < 0.2] = 0.0
    problem = Problem(
        x=normal(batch, pixels),
        mu=normal(batch, latent),
        logvar=normal(batch, latent, scale=0.5),
        layers=layers,
        draw=Draw(n, eps=normal(batch, n, latent)) if sampler == "injected" else draw(draws(n, sampler)),
        weight=None if kind == "none" else laid_out(weight.astype(dtype), layout),
        cell=cell,
    )
    assume(away_from_kinks(problem))
    return problem


@st.composite
def upstreams(draw: st.DrawFn, problem: Problem, kinds: Sequence[str] = UPSTREAMS) -> Array:
    """Draw an upstream gradient (B, n) for the errors of `problem`, in its dtype: of either sign, with zeros.

    "per datum" and "constant" have zero strides along the samples and along both axes.
    """
    shape = (len(problem.x), problem.draw.num_samples)
    kind = draw(st.sampled_from(kinds))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = (rng.standard_normal(shape) * (rng.random(shape) < 0.8)).astype(problem.x.dtype)
    if kind in ("per datum", "constant"):
        # as_strided and not broadcast_to, whose read-only result torch.from_numpy warns of
        return as_strided(values, shape, (values.strides[0] if kind == "per datum" else 0, 0))
    return np.ones_like(values) if kind == "ones" else laid_out(values, kind)
