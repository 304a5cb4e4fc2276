"""The CPU backend: the functions of `mcelbo_kernels.reference`, fast and in the problem's own precision."""

from mcelbo_kernels.cpu.crew import Team, present_team, use_team
from mcelbo_kernels.cpu.noise import noise
from mcelbo_kernels.cpu.pixels import decoded_errors
from mcelbo_kernels.cpu.schedule import errors, gradients
from mcelbo_kernels.cpu.sums import value_and_gradients
from mcelbo_kernels.decoded import DecodedErrors

__all__ = [
    "DecodedErrors",
    "Team",
    "decoded_errors",
    "errors",
    "gradients",
    "noise",
    "present_team",
    "use_team",
    "value_and_gradients",
]
