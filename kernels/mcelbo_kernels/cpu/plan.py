"""What a call needs beside its numbers: buffers as long as a chunk, places for sums; and the numbers' way into it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mcelbo_kernels.cpu.buffers import Chunk, Inputs, Scratch, Totals, contiguous
from mcelbo_kernels.cpu.cell import QUADRATIC, padding_of
from mcelbo_kernels.cpu.layout import Kind, Layout, lay_out
from mcelbo_kernels.cpu.memory import Workspace
from mcelbo_kernels.cpu.noise import key_of
from mcelbo_kernels.problem import Array, Need, Problem

INT64 = np.dtype(np.int64)


class Plan(NamedTuple):
    """A layout and the buffers that go with it, for one call at a time."""

    layout: Layout
    parameters: Array  # (L,) the activations'
    lowest: int  # as in `Inputs`
    x: Array  # (B, M) with 0 behind the pixels, or empty where there is no padding, like the following
    weight: Array  # (B or 1, M)
    centre: Array  # (B, M)
    chunk: Chunk
    scratches: Scratch
    totals: Totals
    nbytes: int


def make_plan(kind: Kind) -> Plan:
    """Lay out a call and make its buffers, of which only those are filled that no call writes before it reads them."""
    layout, memory = lay_out(kind), Workspace()
    padding = -kind.pixels % layout.shape.width
    rows = kind.batch if padding else 0
    padded = (rows, kind.pixels + padding)
    parts = (
        np.array([activation.parameter for _, activation in kind.layers], kind.real),
        lowest(kind.need),
        memory.zeros(padded, kind.real),
        memory.zeros((min(rows, kind.weights), padded[1]), kind.real),
        memory.zeros(padded if kind.centre else (0, 0), kind.real),
        chunk_buffers(kind, layout, memory),
        thread_buffers(kind, layout, memory),
        empty_totals(kind, layout, memory),
    )
    return Plan(layout, *parts, memory.nbytes)


def lowest(need: Need) -> int:
    """Return the first layer whose pre-activations' gradient is needed, -1 if that of the samples is."""
    if need.mu or need.logvar:
        return -1
    return next((index for index, layer in enumerate(need.layers) if any(layer)), len(need.layers) - 1)


def chunk_buffers(kind: Kind, layout: Layout, memory: Workspace) -> Chunk:
    """Make the buffers of one chunk, which its threads share."""
    real, need, cell, capacity, width = kind.real, kind.need, layout.cell, layout.capacity, layout.shape.width
    panels, nothing = -(-kind.pixels // width), (0, 0, 0)
    of_pixels, of_latents = (panels, capacity, width), (-(-kind.latent // width), capacity, width)
    values, ones = memory.take((layout.values,), real), memory.take((capacity,), real)
    ones.fill(1)
    if cell.likelihood == QUADRATIC and len(kind.layers) == 1:
        values.fill(0)  # nobody writes the columns behind the latents, which a quadratic form multiplies with 0
    passed = lowest(need) < 0 or cell.thin or cell.likelihood == QUADRATIC
    return Chunk(
        datum=memory.zeros((capacity,), INT64),
        g=ones,
        weights=memory.take((layout.weights,), real),
        values=values,
        spread=memory.take(of_latents, real),
        dz=memory.take(of_latents if passed else nothing, real),
        dx=memory.take(of_pixels if need.x and cell.weighted else nothing, real),
        dw=memory.take(of_pixels if need.weight else nothing, real),
        errors=memory.zeros((capacity,)),
        sums=memory.take((layout.tasks, layout.totals if cell.thin and cell.gradient else 0), real),
    )


def thread_buffers(kind: Kind, layout: Layout, memory: Workspace) -> Scratch:
    """Make the buffers of all threads; the sums are zeros between calls, too."""
    shape, threads, real = layout.shape, kind.threads, kind.real
    rows = layout.tiles * shape.rows
    return Scratch(
        eps=memory.take((threads, rows, kind.latent), real),
        sums=memory.take((threads, 1, shape.rows, shape.width), real),
        partial=memory.zeros((threads, layout.tiles, shape.rows, shape.lanes), real),
        dz=memory.zeros((threads, rows if layout.cell.thin else 0, shape.rows - 1, shape.lanes), real),
    )


def empty_totals(kind: Kind, layout: Layout, memory: Workspace) -> Totals:
    """Make the places of the sums that are needed, but for the errors, which belong to the caller."""
    need, width = kind.need, layout.shape.width
    posterior = (kind.batch, kind.latent) if need.mu or need.logvar else (0, 0)
    pixels = -(-kind.pixels // width) * width
    return Totals(
        errors=np.empty(0, kind.real),
        moments=memory.take((kind.batch, 3)),
        layers=memory.take((layout.totals,)),
        mu=memory.take(posterior),
        logvar=memory.take(posterior),
        x=memory.take((kind.batch, pixels) if need.x else (0, 0)),
        weight=memory.take((kind.weights, pixels) if need.weight else (0, 0)),
    )


def inputs_of(problem: Problem, upstream: Array | None, centre: Array | None, plan: Plan) -> Inputs:
    """Bring a problem's numbers to where its plan has them; a sample weighs 1/n where there is no upstream."""
    draw, real = problem.draw, problem.x.dtype
    weight = np.empty((0, 0), real) if problem.weight is None else padded(problem.weight, plan.weight)
    return Inputs(
        x=padded(problem.x, plan.x),
        weight=weight,
        weight_stride=weight.shape[1] if weight.shape[0] > 1 else 0,
        mu=contiguous(problem.mu),
        sigma=np.exp(contiguous(problem.logvar) * real.type(0.5)),
        layers=plan.layout.layers,
        parameters=plan.parameters,
        eps=np.empty((0, 0, 0), real) if draw.eps is None else contiguous(draw.eps),
        centre=np.empty((0, 0), real) if centre is None else padded(centre, plan.centre),
        upstream=np.empty((0, 0), real) if upstream is None else contiguous(upstream.astype(real, copy=False)),
        key=key_of(draw, problem.mu.shape[1]),
        num_samples=draw.num_samples,
        lowest=plan.lowest,
        padding=padding_of(plan.layout.cell),
        scale=1.0 / draw.num_samples if upstream is None else 1.0,
    )


def padded(array: Array, place: Array) -> Array:
    """Return the array contiguous, copied to its place before the padding if it has one."""
    if not place.size:
        return contiguous(array)
    place[:, : array.shape[1]] = array
    return place


def start_sums(totals: Totals) -> None:
    """Clear the sums; those of the layers are started by the first chunk."""
    for total in (totals.moments, totals.mu, totals.logvar, totals.x, totals.weight):
        total.fill(0)
