"""A call's memory on a device: one chunk's matrices, what waits between chunks, and the results."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from mcelbo_kernels.cuda.plan import Plan
from mcelbo_kernels.cuda.target import Target
from mcelbo_kernels.problem import Gradients, Moments

WIDE = np.dtype(np.float64)


class Form(NamedTuple):
    """The last layer's errors as a quadratic form, see `gram`."""

    g: Any  # (H, H)
    a: Any  # (B, H)
    centre: Any  # (B, H), None where it is the posterior's mean
    fit: Any  # (B,), the centre's own errors in float64


class Chunk(NamedTuple):
    """A chunk's matrices; those that nobody needs are None."""

    inputs: list[Any]  # of each layer, (rows, I): z, then h
    slopes: list[Any]  # of each layer, (rows, O): the activation's slope, then da; delta of a quadratic form
    sums: Any  # (tiles, rows): the errors of each tile's columns
    dh: Any  # (parts, rows, I) of any layer before the last, where it comes in parts
    dz: Any  # (parts, rows, d)
    dx: Any  # (rows, m)
    dw: Any  # (rows, m)
    parts: Any  # (parts, O I + O) of any layer
    left: Any  # (parts, values, data, columns) of any sum over rows, in float64


class Waiting(NamedTuple):
    """Sums in float64 that go on in the next chunk; those that nobody needs are None."""

    moments: Any  # (B, 3)
    latents: Any  # (B, d, 2)
    x: Any  # (B, m)
    weight: Any  # (B or 1, m)
    layers: list[Any]  # of each layer, (O I + O,)


def chunk_memory(plan: Plan, target: Target) -> Chunk:
    """Make the memory of a chunk."""
    kind, rows = plan.kind, plan.length
    need, latent, pixels, real = kind.need, kind.widths[0], kind.widths[-1], kind.dtype

    def matrix(columns: int, needed: bool = True) -> Any:
        return target.empty(rows * columns, real) if needed else None

    thin = plan.thin is not None
    inputs = [matrix(width, not thin) for width in kind.widths[:-1]]
    slopes = [matrix(width, kind.leaves_slope(index)) for index, width in enumerate(kind.widths[1:-1])]
    by_data, by_weight = matrix(pixels, need.x and not kind.quadratic), matrix(pixels, need.weight)
    parts = max(
        plan.row_parts(index, rows) * outputs * (inputs + 1)
        for index, (inputs, outputs) in enumerate(pairwise(kind.widths))
    )
    errors, latents = (plan.moments, kind.summed), (plan.latents, kind.lowest < 0)
    sums = errors, latents, (plan.x, need.x), (plan.weight, need.weight)
    left = max((each.left(rows) for each, needed in sums if needed), default=0)
    of_parts = [
        0 if item is None or item.parts == 1 else item.parts * width
        for item, width in zip(plan.backward[1:], kind.widths[1:], strict=False)
    ]
    return Chunk(
        inputs=inputs,
        # S = sum_q delta^T delta and v = mean_i delta stand in for the last layer's gradient and that of the data
        slopes=[*slopes, inputs[-1] if kind.quadratic else matrix(pixels, need.gradient and not thin)],
        sums=matrix(plan.columns),
        dh=matrix(max(of_parts, default=0), any(of_parts)),
        dz=matrix(plan.parts_of_dz * latent, plan.parts_of_dz > 0),
        dx=inputs[-1] if kind.quadratic and need.x else by_data,
        dw=by_weight,
        parts=target.empty(parts, real) if parts and need.gradient else None,
        left=target.empty(left, WIDE) if left else None,
    )


def waiting_memory(plan: Plan, target: Target) -> Waiting:
    """Make the places of the sums between chunks."""
    kind, need = plan.kind, plan.kind.need
    latent, pixels = kind.widths[0], kind.widths[-1]

    def place(count: int, needed: bool = True) -> Any:
        return target.empty(count, WIDE) if needed else None

    return Waiting(
        moments=place(3 * kind.batch, kind.summed),
        latents=place(2 * kind.batch * latent, kind.lowest < 0),
        x=place(kind.batch * pixels, need.x),
        weight=place(kind.weights * pixels, need.weight),
        layers=[
            place(outputs * (inputs + 1), any(needed))
            for needed, (inputs, outputs) in zip(need.layers, pairwise(kind.widths), strict=True)
        ],
    )


def places_of_results(plan: Plan, target: Target) -> tuple[Moments, Gradients]:
    """Make the places of a call's moments and gradients, flat; those that nobody needs are None."""
    kind, need, latents = plan.kind, plan.kind.need, plan.kind.lowest < 0
    latent, pixels = kind.widths[0], kind.widths[-1]

    def place(count: int, needed: bool, dtype: Any = kind.dtype) -> Any:
        return target.empty(count, dtype) if needed else None

    mean, squares = (place(kind.batch, kind.summed, WIDE) for _ in range(2))
    return Moments(mean, squares), Gradients(
        x=place(kind.batch * pixels, need.x),
        weight=place(kind.weights * pixels, need.weight),
        mu=place(kind.batch * latent, latents),
        logvar=place(kind.batch * latent, latents),
        layers=tuple(
            (place(outputs * inputs, weight), place(outputs, bias))
            for (weight, bias), (inputs, outputs) in zip(need.layers, pairwise(kind.widths), strict=True)
        ),
    )
