"""The CPU backend: the functions of `mcelbo_kernels.reference`, fast and in the problem's own precision."""

from mcelbo_kernels.cpu.crew import Team, present_team, use_team
from mcelbo_kernels.cpu.noise import noise
from mcelbo_kernels.cpu.pixels import SquaredErrors, squared_errors
from mcelbo_kernels.cpu.schedule import errors, gradients, value_and_gradients

__all__ = [
    "SquaredErrors",
    "Team",
    "errors",
    "gradients",
    "noise",
    "present_team",
    "squared_errors",
    "use_team",
    "value_and_gradients",
]
