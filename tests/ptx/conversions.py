"""The instruction cvt: between integers and floats of any width, rounded and saturated as it says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.ptx.floats import flushed, rounded, saturated
from tests.ptx.integers import Array, Function
from tests.ptx.parse import DTYPES

TO_INTEGERS: dict[str, Function] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def conversion(modifiers: Sequence[str], to: str, source: str) -> Function:
    """Return the function that converts a type to another.

    Raises
    ------
    KeyError : for a combination that is not known
    """
    left = set(modifiers)
    rounding = next((name for name in modifiers if name in TO_INTEGERS), "")
    narrowing = next((name for name in modifiers if name in ("rn", "rz", "rm", "rp")), "rn")
    if left - {"ftz", "sat", rounding, narrowing}:
        raise KeyError(*left)
    kinds = DTYPES[to].kind == "f", DTYPES[source].kind == "f"
    convert = {
        (False, False): lambda: _between_integers(to, "sat" in left),
        (False, True): lambda: _to_integer(to, source, TO_INTEGERS[rounding]),
        (True, False): lambda: _from_integer(to, source, narrowing),
        (True, True): lambda: _between_floats(to, TO_INTEGERS.get(rounding), narrowing),
    }[kinds]()
    return _dressed(convert, "ftz" in left, "sat" in left and kinds[0])


def _dressed(convert: Function, flushing: bool, saturating: bool) -> Function:
    def dressed(x: Array) -> Array:
        result = convert(flushed(x) if flushing and x.dtype == np.float32 else x)
        result = saturated(result) if saturating else result
        return flushed(result) if flushing and result.dtype == np.float32 else result

    return dressed


def _between_integers(to: str, saturating: bool) -> Function:
    limits = np.iinfo(DTYPES[to])

    def convert(x: Array) -> Array:
        own = np.iinfo(x.dtype)
        if saturating:
            x = np.clip(x, max(limits.min, own.min), min(limits.max, own.max))
        return x.astype(DTYPES[to])

    return convert


def _to_integer(to: str, source: str, rounding: Function) -> Function:
    """Return a conversion that saturates always."""
    limits = np.iinfo(DTYPES[to])
    of_nan = 0 if source != "f64" and limits.bits < 64 else 1 << limits.bits - 1
    nan = np.array([of_nan], f"u{limits.bits // 8}").view(DTYPES[to])
    above = 2.0 ** (limits.bits - (limits.kind == "i"))

    def convert(x: Array) -> Array:
        whole = rounding(x.astype("f8"))
        inside = (whole >= limits.min) & (whole < above)
        result = np.where(inside, whole, 0).astype(DTYPES[to])
        result = np.where(whole >= above, DTYPES[to].type(limits.max), result)
        result = np.where(whole < limits.min, DTYPES[to].type(limits.min), result)
        return np.where(np.isnan(whole), nan, result)

    return convert


def _from_integer(to: str, source: str, mode: str) -> Function:
    if mode == "rn":
        return lambda x: x.astype(DTYPES[to])
    if DTYPES[source].itemsize == 8:
        raise KeyError(mode)
    return lambda x: rounded(x.astype("f8"), DTYPES[to].str, mode)


def _between_floats(to: str, rounding: Function | None, mode: str) -> Function:
    def convert(x: Array) -> Array:
        wide = x.astype("f8")
        return rounded(wide if rounding is None else rounding(wide), DTYPES[to].str, mode)

    return convert
