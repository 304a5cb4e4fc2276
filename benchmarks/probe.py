"""One measurement of a fresh process: `python -m benchmarks.probe '{"what": "memory", ...}'` prints JSON.

torch and mcelbo are imported inside, because what they cost is part of the answer.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def status(field: str) -> int:
    """Return a field of this process's memory status (Linux), in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{STATUS} has no field {field}")


def peak_growth(call: Any) -> tuple[int, str]:
    """Return how far one call takes the resident memory above where it stood, and how that was read."""
    try:
        CLEAR.write_text("5")  # sets the peak back to the present size
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        return unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), "as growth of the peak"
    before = status("VmRSS")
    call()
    return status("VmHWM") - before, "as peak less size before"


def memory(request: dict[str, Any]) -> dict[str, Any]:
    """Measure what a call with gradients adds to the process."""
    import torch

    from benchmarks import peers, workloads

    torch.set_num_threads(request["threads"])
    workload = workloads.Workload(**request["workload"])
    # Compiles and loads libraries; at these sizes it leaves no buffers behind for the measured call to reuse. What has
    # a cheaper way for many samples takes it from few on where layers are narrow.
    small = replace(workload, batch=1, samples=2)
    narrow = replace(small, samples=4, latent=1, hidden=None if workload.hidden is None else 1)
    for size in (small, narrow):
        peers.start(request["peer"], workloads.build(size)).result()
    runner = peers.start(request["peer"], workloads.build(workload))
    grown, read = peak_growth(runner.result)
    return {"bytes": grown, "read": read}


def first_call(request: dict[str, Any]) -> dict[str, Any]:
    """Time the imports, and the first and the second loss with gradients after them."""
    start = time.perf_counter()
    import torch

    if request["peer"] == "mcelbo":
        import mcelbo  # noqa: F401
    imported = time.perf_counter()
    from benchmarks import peers, workloads

    torch.set_num_threads(request["threads"])
    case = workloads.build(workloads.Workload(**request["workload"]))
    seconds = []
    built = time.perf_counter()
    runner = peers.start(request["peer"], case)
    for _ in range(2):
        runner.result()
        seconds.append(time.perf_counter() - built)
    return {"imports": imported - start, "first": seconds[0], "second": seconds[1] - seconds[0]}


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps({"memory": memory, "first-call": first_call}[request["what"]](request)))
