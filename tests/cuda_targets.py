"""What stands for a device in tests: kernels as the PTX that they compile to, interpreted, or as Python, simulated."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.absent_device import compiling_for
from tests.ptx import Memory, Program, launch, load

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the CUDA kernels, is not installed")

from mcelbo_kernels.cuda import schedule
from mcelbo_kernels.cuda.seam import Kernel, flat, ptx_of
from mcelbo_kernels.problem import Gradients, Layer, Moments, Need, Problem

CAPABILITY = (8, 0)


class DeviceMemory(Memory):
    """Numbers in a device's memory, with the attributes that a `Problem` asks for."""

    def __init__(self, array: NDArray[Any], written: bool = True, begin: int = 0) -> None:
        super().__init__(np.ascontiguousarray(array), written, begin)
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def __len__(self) -> int:
        return len(self.array)


def text_of(kernel: Kernel, capability: tuple[int, int] = CAPABILITY) -> str:
    """Return the PTX that a kernel compiles to."""
    with compiling_for(capability):
        return ptx_of(kernel, capability)


@cache
def compiled(kernel: Kernel, capability: tuple[int, int] = CAPABILITY) -> Program:
    """Return the program that a kernel compiles to."""
    return load(text_of(kernel, capability))


class Interpreter:
    """A device whose kernels are interpreted; it reports every wrong access, and reads of what nothing wrote."""

    def empty(self, count: int, dtype: Any) -> DeviceMemory:
        """Return memory that must be written before it is read."""
        return DeviceMemory(np.empty(count, dtype), written=False)

    def upload(self, array: NDArray[Any]) -> DeviceMemory:
        """Return a copy in the device's memory."""
        return DeviceMemory(array)

    def launch(self, kernel: Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
        """Interpret a kernel."""
        values = (0 if value is None else value for value in flat(arguments))
        launch(compiled(kernel), blocks, kernel.threads, *values)


def on_device(problem: Problem) -> Problem:
    """Return the problem with its arrays in a device's memory."""

    def held(array: NDArray[Any] | None) -> Any:
        return None if array is None else DeviceMemory(array)

    layers = tuple(Layer(held(layer.weight), held(layer.bias), layer.activation) for layer in problem.layers)
    draw, data = replace(problem.draw, eps=held(problem.draw.eps)), (problem.x, problem.mu, problem.logvar)
    return Problem(*map(held, data), layers, draw, held(problem.weight), problem.cell)


def on_host(gradients: Gradients, problem: Problem) -> Gradients:
    """Return gradients from a device's memory in the shapes of a problem's arrays; all of them must be written."""

    def copied(result: DeviceMemory | None, like: NDArray[Any] | None) -> Any:
        if result is None or like is None:
            return None
        assert result.written.all()
        return result.array.reshape(like.shape)

    return Gradients(
        copied(gradients.x, problem.x),
        copied(gradients.weight, problem.weight),
        copied(gradients.mu, problem.mu),
        copied(gradients.logvar, problem.logvar),
        tuple(
            (copied(weight, layer.weight), copied(bias, layer.bias))
            for (weight, bias), layer in zip(gradients.layers, problem.layers, strict=True)
        ),
    )


def seed_of(problem: Problem) -> DeviceMemory:
    """Return the seed in a device's memory."""
    return DeviceMemory(np.array([problem.draw.seed]))


def errors(problem: Problem) -> NDArray[Any]:
    """Return the errors (B, n) that interpreted kernels compute."""
    found = schedule.errors(on_device(problem), seed_of(problem), Interpreter())
    assert found.written.all()
    return found.array.reshape(len(problem.x), -1)


def value_and_gradients(problem: Problem, need: Need) -> tuple[Moments, Gradients]:
    """Return the moments and gradients that interpreted kernels compute."""
    moments, found = schedule.value_and_gradients(on_device(problem), need, seed_of(problem), Interpreter())
    return Moments(*(array.array for array in moments)), on_host(found, problem)


def gradients(problem: Problem, upstream: NDArray[Any], need: Need) -> Gradients:
    """Return the vector-Jacobian product that interpreted kernels compute."""
    found = schedule.gradients(on_device(problem), DeviceMemory(upstream), need, seed_of(problem), Interpreter())
    return on_host(found, problem)
