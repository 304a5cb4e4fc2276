"""The CPU backend: the functions of `mcelbo_kernels.reference`, fast and in the problem's own precision."""

from mcelbo_kernels.cpu.noise import noise
from mcelbo_kernels.cpu.pixels import SquaredErrors, squared_errors
from mcelbo_kernels.cpu.schedule import errors, gradients, value_and_gradients

__all__ = ["SquaredErrors", "errors", "gradients", "noise", "squared_errors", "value_and_gradients"]
