"""Opcodes as functions of arrays, one element a lane."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.ptx import floats, integers
from tests.ptx.conversions import conversion
from tests.ptx.integers import Array, Function
from tests.ptx.parse import DTYPES

_COMBINATORS: dict[str, Function] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


class Operation(NamedTuple):
    """A function, and the types of what it takes and gives; "carry" is the carry flag."""

    function: Function
    sources: tuple[str, ...]
    results: tuple[str, ...]


def operation(opcode: str) -> Operation:
    """Return what an opcode does.

    Raises
    ------
    KeyError : for one that is not known
    """
    root, *rest = opcode.split(".")
    types = [part for part in rest if part in DTYPES]
    modifiers = [part for part in rest if part not in DTYPES]
    if root == "cvt":
        to, source = types
        return Operation(conversion(modifiers, to, source), (source,), (to,))
    if root == "setp":
        return _comparison(modifiers, types[0])
    if DTYPES[types[0]].kind == "f":
        return _of_floats(root, modifiers, types[0])
    function, signature = integers.TABLE[".".join([root, *modifiers])]
    return _typed(function, signature, types[0])


def _typed(function: Function, signature: str, type_name: str) -> Operation:
    wide = f"{type_name[0]}{2 * int(type_name[1:])}" if "w" in signature else ""
    meaning = {"t": type_name, "w": wide, "n": "u32", "p": "pred", "c": "carry"}
    sources, results = (tuple(meaning[letter] for letter in part) for part in signature.split(">"))
    return Operation(function, sources, results)


def _of_floats(root: str, modifiers: list[str], type_name: str) -> Operation:
    key = ".".join([root, *(part for part in modifiers if part not in ("rn", "ftz", "sat"))])
    function, signature = floats.TABLE[type_name][key]
    return _typed(_dressed(function, "ftz" in modifiers, "sat" in modifiers), signature, type_name)


def _dressed(function: Function, flushing: bool, saturating: bool) -> Function:
    """Return the function between what .ftz and .sat do to its arguments and result."""

    def flush(x: Array) -> Array:
        return floats.flushed(x) if x.dtype.kind == "f" else x

    def dressed(*arguments: Array) -> Array:
        result = function(*map(flush, arguments)) if flushing else function(*arguments)
        result = floats.saturated(result) if saturating else result
        return flush(result) if flushing else result

    return dressed if flushing or saturating else function


def _comparison(modifiers: list[str], type_name: str) -> Operation:
    is_float = DTYPES[type_name].kind == "f"
    flushing = "ftz" in modifiers
    name, *combinator = [part for part in modifiers if part != "ftz"]
    compare = _dressed((floats.FLOAT_COMPARISONS if is_float else integers.COMPARISONS)[name], flushing, False)
    combine = _COMBINATORS[combinator[0]] if combinator else None

    def both(a: Array, b: Array, *condition: Array) -> tuple[Array, Array]:
        holds = compare(a, b)
        if combine is None:
            return holds, ~holds
        return combine(holds, *condition), combine(~holds, *condition)

    return Operation(both, (type_name,) * 2 + ("pred",) * len(combinator), ("pred", "pred"))
