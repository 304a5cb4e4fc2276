"""The peer that runs in a process of its own: JAX, perhaps in an environment of its own. See `jax_worker.py`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.workloads import Case

ROOT = Path(__file__).resolve().parents[1]


class JaxRunner:
    """One worker process and the pipes to it; a `peers.Runner`. `python` is the interpreter that has JAX."""

    def __init__(self, case: Case, python: str | None = None) -> None:
        self.case = case
        # XLA's pool is as large as NPROC says. The path is the repository's alone, so that no package of ours follows.
        environment = os.environ | {
            "NPROC": str(torch.get_num_threads()),
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": str(int(case.x.dtype == torch.float64)),
            "PYTHONPATH": str(ROOT),
        }
        self.process = subprocess.Popen(
            [python or sys.executable, "-m", "benchmarks.jax_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        arrays: dict[str, Any] = {"x": case.x, "mu": case.mu, "logvar": case.logvar}
        for index, layer in enumerate(case.layers):
            arrays |= {f"weight{index}": layer.weight, f"bias{index}": layer.bias}
        if case.eps is not None:
            arrays["eps"] = case.eps
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "case.npz"
            np.savez(path, **{name: tensor.detach().numpy() for name, tensor in arrays.items()})
            workload = case.workload
            loaded = self.ask(do="load", arrays=str(path), samples=workload.samples, output=workload.output)
        self.version: str = loaded["version"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            print(json.dumps(request), file=stdin, flush=True)
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            raise RuntimeError(f"the JAX worker ended with status {self.process.returncode}; its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def time(self, mode: str, seconds: float) -> float:
        """See `peers.Runner`."""
        return float(self.ask(do="time", mode=mode, seconds=seconds)["seconds"])

    def unavailable(self, mode: str) -> str | None:
        """See `peers.Runner`."""
        return None

    def result(self) -> tuple[Tensor, ...]:
        """See `peers.Runner`."""
        names = ["value", "mu", "logvar"]
        names += [f"{part}{index}" for index in range(len(self.case.layers)) for part in ("weight", "bias")]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.npz"
            self.ask(do="result", arrays=str(path))
            with np.load(path) as arrays:
                return tuple(torch.from_numpy(arrays[name]) for name in names)

    def processes(self) -> list[int]:
        """See `peers.Runner`."""
        return [self.process.pid]

    def close(self) -> None:
        """End the worker."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # of a worker that died before it read
                    pipe.close()
        self.process.wait()
