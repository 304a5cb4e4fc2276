"""One visit to a peer. Standard library only: JAX's worker imports it from an environment of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

LEAST_CALLS = 3


def visit(call: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the median time of a call, from calls that take `seconds` together, three at least.

    The first call is not timed: it brings the caches back from whoever ran before, and outlasts the
    worker threads that another library may leave spinning.
    """
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < LEAST_CALLS:
        start = clock()
        call()
        times.append(clock() - start)
    return statistics.median(times)
