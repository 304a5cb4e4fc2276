"""torch's own threads, which the kernels borrow.

After an operation torch's threads look out for the next one for some milliseconds, each on its core. Other threads
would have to wait for those cores; these are there already, and as many as torch was told to use.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

from mcelbo_kernels.cpu import Team

PROCESS_FLAGS = 6  # in /proc/self/stat, counted from behind the name of the program
FORKED_WITHOUT_PROGRAM = 0x40


def torch_team() -> Team | None:
    """Return the OpenMP threads that torch runs on; None where it has none, or they cannot be had.

    Returns
    -------
    Team or None

    Examples
    --------
    >>> team = torch_team()
    >>> team is None or team.name
    "torch's OpenMP team"
    """
    if sys.platform != "linux" or forked():
        return None
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    with suppress(OSError, AttributeError):
        # A name is looked up in what the library itself has loaded: that is the OpenMP that torch calls.
        run = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        return Team("torch's OpenMP team", ctypes.cast(run, ctypes.c_void_p).value or 0)
    return None


def forked() -> bool:
    """Whether this process is a mere copy of another: OpenMP believes in threads that only the other one has."""
    with suppress(OSError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return bool(int(fields[PROCESS_FLAGS]) & FORKED_WITHOUT_PROGRAM)
    return False
