"""The CUDA backend: the functions of `mcelbo_kernels.reference` on an NVIDIA GPU, by numba-cuda.

Problems hold arrays in the device's memory, and a `Target` runs the kernels there: mcelbo's is over torch's memory and
streams. Nothing here waits for the device, but for the first use of Sobol's directions for a number of latents.
numba-cuda is imported with this package and not before.
"""

from mcelbo_kernels.cuda.algorithms import value_and_gradients
from mcelbo_kernels.cuda.noise import noise
from mcelbo_kernels.cuda.pixels import decoded_errors
from mcelbo_kernels.cuda.recording import Given, Place, Recording, record
from mcelbo_kernels.cuda.schedule import errors, gradients
from mcelbo_kernels.cuda.target import DeviceArray, Target

__all__ = [
    "DeviceArray",
    "Given",
    "Place",
    "Recording",
    "Target",
    "decoded_errors",
    "errors",
    "gradients",
    "noise",
    "record",
    "value_and_gradients",
]
