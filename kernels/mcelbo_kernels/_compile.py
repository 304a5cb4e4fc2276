"""How kernels are compiled and where they are kept: the one place that sets numba's options.

numba looks for changes in the file of a cached function alone, so an edited callee in another file would be served
stale. Here all kernel sources decide the name of the cache directory, a sibling of those of other versions:

    NUMBA_CACHE_DIR/mcelbo/<hash>        or, where that is not set,        <the user's cache directory>/mcelbo/<hash>
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher
from numba.misc.appdirs import AppDirs

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS = {"error_model": "numpy", "nogil": True, "_nrt": False}
DIGITS = 16
OTHER_VERSIONS_KEPT = 3


def jit(function: Function, **options: Any) -> Function:
    """Compile a kernel: no GIL, division as in NumPy, machine code kept between processes."""
    dispatcher = numba.njit(**OPTIONS | options)(function)
    if DIRECTORY is not None and isinstance(dispatcher, Dispatcher):
        dispatcher._cache = _KernelCache(function)  # type: ignore[attr-defined]
    return dispatcher  # type: ignore[no-any-return]


def reducing(function: Function) -> Function:
    """Compile a kernel whose sums may be reordered, so that they run in vectors; NaN and infinities are kept."""
    return jit(function, fastmath={"reassoc", "contract", "nsz"})


def linked(function: Function) -> Function:
    """Compile a function that only kernels call: they hold its machine code, so nobody need keep it by itself."""
    return numba.njit(**OPTIONS)(function)  # type: ignore[no-any-return]


def inline(function: Function) -> Function:
    """Compile a function that becomes part of every kernel that calls it, and keeps its own order in all of them."""
    # numba would otherwise hand down the fast-math of whichever kernel happens to call it first
    return numba.njit(**OPTIONS, forceinline=True, fastmath=False)(function)  # type: ignore[no-any-return]


def part(function: Function) -> Function:
    """Compile a function as a part of the kernel that calls it only, which is cheaper where it calls kernels itself."""
    return numba.njit(**OPTIONS, inline="always")(function)  # type: ignore[no-any-return]


def hash_of_sources(package: Path) -> str | None:
    """Return a hash of numba's version and all sources of the package; None where there are no source files."""
    digest = hashlib.sha256(numba.__version__.encode())
    sources = sorted(package.rglob("*.py"))
    for source in sources:
        text = source.read_bytes()
        digest.update(f"{source.relative_to(package).as_posix()} {len(text)} ".encode() + text)
    return digest.hexdigest()[:DIGITS] if sources else None


def cache_directory() -> Path | None:
    """Make the directory for the present sources and return it; None where nothing can be written."""
    user = AppDirs("mcelbo", appauthor=False).user_cache_dir
    parent = Path(config.CACHE_DIR).absolute() / "mcelbo" if config.CACHE_DIR else Path(user)
    try:
        name = hash_of_sources(Path(__file__).parent)
        if name is None or not parent.is_absolute():
            return None
        directory = parent / name
        known = directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError:
        return None
    with suppress(OSError):
        os.utime(directory)
        if not known:
            prune(directory)
    return directory


def prune(directory: Path) -> None:
    """Remove the directories of other versions but for the few used last."""
    ours = re.compile(f"[0-9a-f]{{{DIGITS}}}")
    others = [path for path in directory.parent.iterdir() if ours.fullmatch(path.name) and path != directory]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[OTHER_VERSIONS_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


class _Locator:
    """Tells numba where a function's machine code is kept, and when that is out of date: never."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._py_file = function.__code__.co_filename
        self._name = f"{function.__module__}-{function.__code__.co_firstlineno}"

    def get_cache_path(self) -> str:
        return str(DIRECTORY)

    def ensure_cache_path(self) -> None:
        os.makedirs(self.get_cache_path(), exist_ok=True)

    def get_source_stamp(self) -> str:
        return ""

    def get_disambiguator(self) -> str:
        return self._name


class _Implementation(CompileResultCacheImpl):
    """numba's, with the one locator, whatever the environment says of locators."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._lineno = function.__code__.co_firstlineno
        self._locator = _Locator(function)
        self._filename_base = self.get_filename_base(function.__qualname__, "")


class _Files(IndexDataCacheFile):
    """numba's, with a file for every key in place of an index.

    Of two processes that compile a function at once for different types, both may take the same number from an index,
    and one would be handed the other's machine code.
    """

    def save(self, key: Any, data: Any) -> None:
        self._save_data(self._name_of(key), (key, data))

    def load(self, key: Any) -> Any:
        with suppress(FileNotFoundError):
            kept, data = self._load_data(self._name_of(key))
            return data if kept == key else None
        return None

    def _name_of(self, key: Any) -> str:
        return str(self._data_name(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big")))


class _KernelCache(FunctionCache):
    """numba's, to which a file that cannot be read or written is a file that is not there."""

    _impl_class = _Implementation

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        name, stamp = self._impl.filename_base, self._impl.locator.get_source_stamp()
        self._cache_file = _Files(cache_path=self._cache_path, filename_base=name, source_stamp=stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with suppress(OSError, EOFError, pickle.UnpicklingError):
            return super().load_overload(sig, target_context)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError, EOFError, pickle.UnpicklingError):
            super().save_overload(sig, data)


DIRECTORY = cache_directory()
