"""Kernels compile once per version of the sources, and wherever nothing can be written, still compile."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from numba import config

import mcelbo_kernels
from mcelbo_kernels._compile import OTHER_VERSIONS_KEPT, _Files, hash_of_sources, inline, jit, prune, reducing

PACKAGE = Path(mcelbo_kernels.__file__).parent

# A small kernel in a package of its own, so that a test need not wait for the real ones.
USE = """
import warnings
warnings.simplefilter("error")
from numba import config
from mcelbo_kernels import _compile
from mcelbo_kernels.kernel import double
assert double(3) == {expected}
print(_compile.DIRECTORY, sum(double.stats.cache_hits.values()), sum(double.stats.cache_misses.values()))
print(config.CACHE_DIR == {configured!r})
"""
CALLEE = "from mcelbo_kernels._compile import inline\n@inline\ndef twice(x):\n    return {factor} * x\n"
KERNEL = (
    "from mcelbo_kernels._compile import jit\nfrom mcelbo_kernels.callee import twice\n"
    "@jit\ndef double(x):\n    return twice(x)\n"
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Write a package of the same name with the same `_compile` and one kernel."""
    root = tmp_path / "sources" / "mcelbo_kernels"
    root.mkdir(parents=True)
    (root / "__init__.py").touch()
    (root / "_compile.py").write_bytes((PACKAGE / "_compile.py").read_bytes())
    (root / "callee.py").write_text(CALLEE.format(factor=2))
    (root / "kernel.py").write_text(KERNEL)
    return root


def use(package: Path, expected: int = 6, **environment: str) -> tuple[str, int, int]:
    """Call the kernel in a fresh process; return the cache directory, the hits and the misses."""
    variables = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    # isolated from this checkout: the path comes from the command, and the package under test is found first
    start = f"import sys; sys.path.insert(0, {str(package.parent)!r})\n"
    code = start + USE.format(expected=expected, configured=environment.get("NUMBA_CACHE_DIR", ""))
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, unchanged = done.stdout.splitlines()
    assert unchanged == "True"
    directory, hits, misses = first.rsplit(maxsplit=2)
    return directory, int(hits), int(misses)


def test_second_process_compiles_nothing(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    directory, hits, misses = use(package, NUMBA_CACHE_DIR=str(cache))
    assert Path(directory).parent == cache / "mcelbo"
    assert (hits, misses) == (0, 1)
    assert use(package, NUMBA_CACHE_DIR=str(cache)) == (directory, 1, 0)


def test_edited_callee_is_seen(package: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    before, _, _ = use(package, NUMBA_CACHE_DIR=cache)
    (package / "callee.py").write_text(CALLEE.format(factor=5))
    after, hits, misses = use(package, expected=15, NUMBA_CACHE_DIR=cache)
    assert after != before
    assert (hits, misses) == (0, 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="XDG_CACHE_HOME is read on Linux")
def test_users_cache_directory(package: Path, tmp_path: Path) -> None:
    directory, _, _ = use(package, XDG_CACHE_HOME=str(tmp_path / "home"))
    assert Path(directory).parent == tmp_path / "home" / "mcelbo"


# A plain file where the directory should be refuses even root, whom permissions do not stop.
@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR", "XDG_CACHE_HOME"])
def test_without_a_writable_directory_kernels_still_compile(package: Path, tmp_path: Path, variable: str) -> None:
    blocked = tmp_path / "blocked"
    blocked.touch()
    if variable == "XDG_CACHE_HOME" and not sys.platform.startswith("linux"):
        pytest.skip("XDG_CACHE_HOME is read on Linux")
    assert use(package, **{variable: str(blocked)}) == ("None", 0, 1)


def test_damaged_cache_is_compiled_anew(package: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    directory, _, _ = use(package, NUMBA_CACHE_DIR=cache)
    for file in Path(directory).iterdir():
        file.write_bytes(file.read_bytes()[:5])
    assert use(package, NUMBA_CACHE_DIR=cache) == (directory, 0, 1)


def test_processes_that_compile_at_once_find_what_each_of_them_kept(tmp_path: Path) -> None:
    both = Barrier(2, timeout=30)

    class Files(_Files):
        """Neither process writes before both have looked at what is there."""

        def _dump(self, obj: Any) -> Any:
            both.wait()
            return super()._dump(obj)

    def files(kind: type[_Files]) -> _Files:
        return kind(cache_path=str(tmp_path), filename_base="kernel", source_stamp="")

    keys = "float32", "float64"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda key: files(Files).save(key, f"machine code for {key}"), keys))
    assert [files(_Files).load(key) for key in keys] == [f"machine code for {key}" for key in keys]
    assert files(_Files).load("int32") is None


def test_hash_changes_with_any_source(package: Path) -> None:
    hashes = [hash_of_sources(package)]
    (package / "callee.py").write_text("")
    hashes.append(hash_of_sources(package))
    (package / "callee.py").rename(package / "renamed.py")
    hashes.append(hash_of_sources(package))
    (package / "below").mkdir()
    (package / "below" / "new.py").touch()
    hashes.append(hash_of_sources(package))
    assert len(set(hashes)) == 4
    assert hash_of_sources(package) == hashes[-1]


def test_no_sources_no_hash(tmp_path: Path) -> None:
    assert hash_of_sources(tmp_path) is None


def test_prune_keeps_the_latest_versions_and_all_else(tmp_path: Path) -> None:
    versions = [tmp_path / f"{number:016x}" for number in range(OTHER_VERSIONS_KEPT + 3)]
    for age, version in enumerate(versions):
        version.mkdir()
        (version / "kernel.nbc").touch()
        os.utime(version, (10**9 - age, 10**9 - age))
    foreign = tmp_path / "someone else's"
    foreign.mkdir()
    current = versions[-1]
    prune(current)
    assert set(tmp_path.iterdir()) == {*versions[:OTHER_VERSIONS_KEPT], current, foreign}


def test_options() -> None:
    """Division by zero is NumPy's, in kernels and in what is inlined into them, and the GIL is released."""

    @inline
    def quotient(x, y):
        return x / y

    @jit
    def kernel(x, y):
        return quotient(x, y)

    assert kernel(np.float32(1), np.float32(0)) == np.inf
    assert kernel.targetoptions["nogil"]
    assert os.environ.get("NUMBA_CACHE_DIR", "") == config.CACHE_DIR


def test_what_is_inlined_into_a_reducing_kernel_keeps_its_order() -> None:
    @inline
    def rounded(x):
        return (x + 6755399441055744.0) - 6755399441055744.0

    @reducing
    def kernel(x):
        return rounded(x)

    assert kernel(0.3) == 0
