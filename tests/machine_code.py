"""The machine code of CUDA kernels, made without a device: what it takes, and what its main loop executes.

numba-cuda compiles a kernel to PTX; ptxas makes machine code of that and says how many registers and how much memory a
thread takes; nvdisasm lists the instructions. `python -m tests.machine_code` prints all that of the kernels.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import NamedTuple

from mcelbo_kernels.cuda.seam import SIMULATED, Kernel, ptx_of
from tests.absent_device import compiling_for
from tests.control_flow import Block, Instruction, blocks_of, interior, share

CAPABILITIES = ((7, 5), (8, 0), (9, 0), (10, 0))


class Resources(NamedTuple):
    """What ptxas says that a kernel takes: registers of a thread, and bytes."""

    registers: int
    stack: int
    spilled: int
    shared: int


@dataclass(frozen=True)
class MachineCode:
    """A kernel as it was compiled."""

    ptx: str
    resources: Resources
    binary: bytes

    @cached_property
    def blocks(self) -> list[Block]:
        """Its basic blocks, in the order in which they lie."""
        with NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.binary)
            file.flush()
            return blocks_of(_run("nvdisasm", "-c", file.name))

    @property
    def instructions(self) -> Iterator[Instruction]:
        """All instructions, executed or not."""
        return (instruction for block in self.blocks for instruction in block.instructions)


@cache
def tool(name: str) -> str | None:
    """Return the path of a program of the CUDA toolkit, from a wheel or from PATH."""
    package = find_spec("nvidia")
    folders = package.submodule_search_locations if package else None
    wheels = (path for folder in folders or () for path in sorted(Path(folder).glob(f"cu*/bin/{name}"), reverse=True))
    return next(map(str, wheels), None) or shutil.which(name)


def available() -> bool:
    """Return whether kernels can be compiled and looked at here."""
    return not SIMULATED and find_spec("numba_cuda") is not None and None not in map(tool, ("ptxas", "nvdisasm"))


def compiled(kernel: Kernel, capability: tuple[int, int]) -> MachineCode:
    """Compile a kernel for a compute capability."""
    with compiling_for(capability):
        ptx = ptx_of(kernel, capability)
    with TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        said = _run("ptxas", "-v", f"-arch=sm_{capability[0]}{capability[1]}", str(source), "-o", str(binary))
        return MachineCode(ptx, resources(said), binary.read_bytes())


def _run(name: str, *arguments: str) -> str:
    """Return what a program of the CUDA toolkit says."""
    command = [tool(name) or name, *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def resources(said: str) -> Resources:
    """Read what `ptxas -v` says."""

    def total(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, said)))

    return Resources(
        registers=max(map(int, re.findall(r"Used (\d+) registers", said))),
        stack=total(r"(\d+) bytes stack frame"),
        spilled=total(r"(\d+) bytes spill"),
        shared=total(r"(\d+) bytes smem"),
    )


def report() -> None:
    """Print what the representative kernels take and execute."""
    from tests.cuda_kernels import REPRESENTATIVE

    print(f"{'kernel':80} {'sm':>4} {'registers':>9} {'shared':>6} {'spilled':>7} {'stack':>5} {'loop':>4} {'FMA':>4}")
    for case, capability in product(REPRESENTATIVE, CAPABILITIES):
        code = compiled(case.make(), capability)
        registers, stack, spilled, shared = code.resources
        path = interior(code.blocks) if case.tile else []
        loop = f"{len(path):4} {share(path):4.0%}" if path else ""
        name = f"{case.name:80} {'{}.{}'.format(*capability):>4}"
        print(f"{name} {registers:9} {shared:6} {spilled:7} {stack:5} {loop}", flush=True)


if __name__ == "__main__":
    report()
