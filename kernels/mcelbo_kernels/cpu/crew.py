"""The threads that help a call along: a pool of our own, which no call waits for."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock

_lock = Lock()
_pool: ThreadPoolExecutor | None = None


def call_on_helpers(task: Callable[[], object], helpers: int) -> None:
    """Have up to `helpers` threads run `task` soon; it must return by itself once there is nothing left to do."""
    global _pool
    # Where no thread can be started, as when the interpreter is shutting down, there is no help.
    with _lock, suppress(RuntimeError):
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="mcelbo")
        for _ in range(helpers):
            _pool.submit(task)


def _forget() -> None:
    """Start anew in a forked child, which has the pool but none of its threads."""
    global _lock, _pool
    _lock, _pool = Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
