"""A call's memory on a device: one chunk's matrices, what waits between chunks, and the results."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from mcelbo_kernels.cuda.plan import Plan
from mcelbo_kernels.cuda.target import Target
from mcelbo_kernels.problem import Gradients, Moments, Problem

WIDE = np.dtype(np.float64)


class Chunk(NamedTuple):
    """A chunk's matrices; those that nobody needs are None."""

    inputs: list[Any]  # of each layer, (rows, I): z, then h
    slopes: list[Any]  # of each layer, (rows, O): the activation's slope, then da
    sums: Any  # (tiles, rows): the errors of each tile's columns
    dz: Any  # (parts, rows, d)
    dx: Any  # (rows, m)
    dw: Any  # (rows, m)
    parts: Any  # (parts, O I + O) of any layer


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
    parts = max(
        plan.row_parts(index, rows) * outputs * (inputs + 1)
        for index, (inputs, outputs) in enumerate(pairwise(kind.widths))
    )
    return Chunk(
        inputs=[matrix(width, not thin) for width in kind.widths[:-1]],
        slopes=[matrix(width, need.gradient and not thin) for width in kind.widths[1:]],
        sums=matrix(plan.columns),
        dz=matrix(plan.latent_parts * latent, plan.latent_parts > 0),
        dx=matrix(pixels, need.x),
        dw=matrix(pixels, need.weight),
        parts=target.empty(parts, real) if parts and need.gradient else None,
    )


def waiting_memory(plan: Plan, target: Target) -> Waiting:
    """Make the places of the sums between chunks."""
    kind, need = plan.kind, plan.kind.need
    latent, pixels = kind.widths[0], kind.widths[-1]

    def place(count: int, needed: bool = True) -> Any:
        return target.empty(count, WIDE) if needed else None

    return Waiting(
        moments=place(3 * kind.batch),
        latents=place(2 * kind.batch * latent, kind.lowest < 0),
        x=place(kind.batch * pixels, need.x),
        weight=place(kind.weights * pixels, need.weight),
        layers=[
            place(outputs * (inputs + 1), any(needed))
            for needed, (inputs, outputs) in zip(need.layers, pairwise(kind.widths), strict=True)
        ],
    )


def places_of_results(problem: Problem, plan: Plan, target: Target) -> tuple[Moments, Gradients]:
    """Make the places of a call's moments and gradients, flat."""
    need, latents = plan.kind.need, plan.kind.lowest < 0

    def like(array: Any, needed: bool) -> Any:
        return target.empty(prod(array.shape), plan.kind.dtype) if needed else None

    mean, squares = (target.empty(plan.kind.batch, WIDE) for _ in range(2))
    return Moments(mean, squares), Gradients(
        x=like(problem.x, need.x),
        weight=like(problem.weight, need.weight),
        mu=like(problem.mu, latents),
        logvar=like(problem.logvar, latents),
        layers=tuple(
            (like(layer.weight, weight), like(layer.bias, bias))
            for layer, (weight, bias) in zip(problem.layers, need.layers, strict=True)
        ),
    )
