"""PTX texts for tests: an entry around a few instructions, or around one that is applied to columns of operands."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.arguments import unwritten
from tests.ptx.machine import launch
from tests.ptx.parse import DTYPES
from tests.ptx.program import Program, load

_PARAMETERS = 7  # of a flattened array with one axis; number 4 of them is the pointer


def entry(body: str, arrays: int, before: str = "") -> str:
    """Return an entry with arrays for arguments, %rd0, %rd1, ... pointing at them and the thread's number in %r0."""
    names = ", ".join(f".param .u64 p{k}" for k in range(arrays * _PARAMETERS))
    pointers = "\n".join(f"ld.param.u64 %rd{k}, [p{k * _PARAMETERS + 4}];" for k in range(arrays))
    return f"""
.version 8.0
.target sm_80
{before}
.visible .entry test({names})
{{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<20>;
    .reg .b64 %rd<20>;
    {pointers}
    mov.u32 %r0, %tid.x;
    {body}
    ret;
}}"""


def apply(opcode: str, sources: tuple[str, ...], result: str, *columns: Any, then: str = "") -> NDArray[Any]:
    """Return what an instruction makes of columns of operands; `then` is the text of operands behind them."""
    arrays = [np.array(column, DTYPES[name]) for name, column in zip(sources, columns, strict=True)]
    out = np.zeros(len(arrays[0]), "u4" if result == "pred" else DTYPES[result])
    launch(_around(opcode, sources, result, then), 1, len(out), *arrays, unwritten(out))
    return out.astype(bool) if result == "pred" else out


@cache
def _around(opcode: str, sources: tuple[str, ...], result: str, then: str) -> Program:
    lines = [f".reg .{name} %s{k};" for k, name in enumerate(sources)] + [f".reg .{result} %d;"]
    for k, name in enumerate((*sources, "u32" if result == "pred" else result)):
        lines.append(f"mad.wide.u32 %rd{k}, %r0, {DTYPES[name].itemsize}, %rd{k};")
    lines += [f"ld.global.{name} %s{k}, [%rd{k}];" for k, name in enumerate(sources)]
    lines.append(f"{opcode} {', '.join(['%d', *(f'%s{k}' for k in range(len(sources)))])}{then};")
    if result == "pred":
        lines.append(f"selp.u32 %r1, 1, 0, %d; st.global.u32 [%rd{len(sources)}], %r1;")
    else:
        lines.append(f"st.global.{result} [%rd{len(sources)}], %d;")
    return load(entry("\n".join(lines), len(sources) + 1))
