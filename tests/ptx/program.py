"""A PTX text loaded: an entry and the functions it calls as one sequence of instructions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ptx.decode import decode
from tests.ptx.instructions import Context, Instruction
from tests.ptx.integers import Array
from tests.ptx.memory import BUFFER_BITS, place
from tests.ptx.operands import constant
from tests.ptx.parse import Function, Module, Variable, parse


@dataclass
class Program:
    """An entry and all it calls.

    Attributes
    ----------
    code : instructions, those of called functions first
    start : place of the entry's first instruction
    parameters : of the entry
    registers : dtype of each register's bits
    buffers : initial bytes of variables in global memory, which are its first buffers
    shared, local : sizes of variables by address; dynamic shared memory has none yet
    granules : fewest bytes that an instruction accesses of shared and of local memory
    """

    code: list[Instruction]
    start: int
    parameters: list[Variable]
    registers: list[np.dtype[Any]]
    buffers: list[Array]
    shared: dict[int, int]
    local: dict[int, int]
    granules: dict[str, int]


def load(text: str) -> Program:
    """Return the program of a PTX text, which has one entry.

    Raises
    ------
    NotImplementedError : for an instruction that is not known, naming its line
    """
    module = parse(text)
    (entry,) = (function for function in module.functions.values() if function.kind == "entry")
    functions = {function.name: function for function in _needed(module, entry)}
    spaces = _spaces(module)
    symbols = _addresses(spaces)
    context = Context(
        symbols,
        module.registers,
        carry=module.register("pred"),
        entry_parameters={variable.name for variable in entry.parameters},
        functions=functions,
        returns={name: module.register("b64") for name, function in functions.items() if function.kind == "func"},
    )
    code = _code(context)
    sizes = ({symbols[variable.name]: variable.size for variable in spaces[name]} for name in ("shared", "local"))
    buffers = [_initial(variable) for variable in spaces["global"]]
    start = context.starts[entry.name]
    return Program(code, start, entry.parameters, module.registers, buffers, *sizes, context.granules)


def _needed(module: Module, function: Function, callers: tuple[str, ...] = ()) -> Iterator[Function]:
    """Yield what a function calls, what is called first, and itself."""
    if function.name in callers:
        raise NotImplementedError(f"{function.name} calls itself")
    for statement in function.body:
        if statement.opcode.startswith("call"):
            name = next(text for text in statement.operands if not text.startswith("("))
            if name not in module.functions:
                raise NotImplementedError(f"line {statement.line}: {statement.text}")
            yield from _needed(module, module.functions[name], (*callers, function.name))
    yield function


def _spaces(module: Module) -> dict[str, list[Variable]]:
    """Return variables by where they are; calls' parameters are local."""
    variables = dict(module.variables)
    for function in module.functions.values():
        if function.kind == "func":
            for variable in (*function.parameters, *function.results):
                known = variables.get(variable.name, variable)
                variables[variable.name] = max(known, variable, key=lambda v: v.size)
    spaces: dict[str, list[Variable]] = {"global": [], "shared": [], "local": []}
    for variable in variables.values():
        spaces[{"const": "global", "param": "local"}.get(variable.space, variable.space)].append(variable)
    return spaces


def _addresses(spaces: dict[str, list[Variable]]) -> dict[str, int]:
    """Return addresses of variables by name; those of dynamic size all have the last one."""
    symbols = {variable.name: (k + 1) << BUFFER_BITS for k, variable in enumerate(spaces["global"])}
    symbols |= place(spaces["local"], fence=64)
    shared = sorted(spaces["shared"], key=lambda variable: (not variable.size, variable.align))
    addresses = place(shared, fence=1024)
    return symbols | addresses | {v.name: addresses[shared[-1].name] for v in shared if not v.size}


def _initial(variable: Variable) -> Array:
    numbers = np.zeros(variable.count, variable.dtype)
    for index, text in enumerate(variable.values):
        numbers[index] = constant(text, variable.dtype)[0]
    return numbers.view(np.uint8)


def _code(context: Context) -> list[Instruction]:
    """Decode functions one behind the other: lanes run from the lowest place on, so those in a call come back first."""
    code: list[Instruction] = []
    for name, function in context.functions.items():
        context.function, context.starts[name] = name, len(code)
        # a call is two instructions
        places = [len(code)]
        for statement in function.body:
            places.append(places[-1] + 1 + statement.opcode.startswith("call"))
        context.labels = {label: places[index] for label, index in function.labels.items()}
        context.tables = {
            label: function.body[index].operands
            for label, index in function.labels.items()
            if index < len(function.body) and function.body[index].opcode == ".branchtargets"
        }
        for here, statement in zip(places, function.body, strict=False):
            code += decode(statement, here, context)
    return code
