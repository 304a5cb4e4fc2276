"""An interpreter of PTX, the code that kernels are compiled to, which needs no GPU and misses no wrong access."""

from tests.ptx.arguments import Memory, unwritten
from tests.ptx.machine import Fault, launch
from tests.ptx.program import Program, load

__all__ = ["Fault", "Memory", "Program", "launch", "load", "unwritten"]
