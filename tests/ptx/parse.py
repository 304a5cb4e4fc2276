"""PTX text as data: variables, functions, and statements whose register names are resolved."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

DTYPES = {f"{kind}{bits}": np.dtype(f"{letter}{bits // 8}") for kind, letter in zip("bus", "uui", strict=True)
          for bits in (8, 16, 32, 64)}  # fmt: skip
DTYPES |= {"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype(bool)}

_NOT_TEXT = re.compile(r"//[^\n]*|/\*.*?\*/|^\s*\.(?:version|target|address_size|loc|file)\b[^\n]*", re.S | re.M)
_SPACE = re.compile(r"\s*")
_LABEL = re.compile(r"\s*([\w$]+):")
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|common|weak)\s+)*\.(?P<space>global|const|shared|local|param)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?:\.ptr\s.*?)?(?P<name>[\w$%]+)\s*(?P<array>\[(?P<count>\d*)\])?"
    r"(?:\s*=\s*(?P<values>.*))?$",
    re.S,
)
_FUNCTION = re.compile(
    r"\.(?P<kind>entry|func)\s*(?:\((?P<results>[^)]*)\))?\s*(?P<name>[\w$]+)\s*(?:\((?P<parameters>[^)]*)\))?"
)
_STATEMENT = re.compile(r"(?:@(?P<guard>!?%?[\w$]+)\s+)?(?P<opcode>[\w.:]+)\s*(?P<operands>.*)$", re.S)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)$", re.S)


class Variable(NamedTuple):
    """A declared piece of memory."""

    name: str
    space: str
    dtype: np.dtype[Any]
    count: int
    align: int
    values: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return self.count * self.dtype.itemsize


class Statement(NamedTuple):
    """An instruction, or a directive that matters within a function, and the registers that its names mean."""

    line: int
    text: str
    guard: str
    opcode: str
    operands: tuple[str, ...]
    registers: ChainMap[str, int]


@dataclass
class Function:
    """An entry or a device function; labels map to indices of the statements that follow them."""

    name: str
    kind: str
    results: list[Variable]
    parameters: list[Variable]
    body: list[Statement] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


@dataclass
class Module:
    """Everything a PTX text declares; a register's number is its index in `registers`, its dtype that of its bits."""

    variables: dict[str, Variable] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    registers: list[np.dtype[Any]] = field(default_factory=list)

    def register(self, type_name: str) -> int:
        """Add a register and return its number."""
        dtype = DTYPES[type_name]
        self.registers.append(dtype if type_name == "pred" else np.dtype(f"u{dtype.itemsize}"))
        return len(self.registers) - 1


def parse(text: str) -> Module:
    """Return what the text declares."""
    module = Module()
    function: Function | None = None
    scopes: list[ChainMap[str, int]] = [ChainMap()]
    for line, piece in _pieces(_NOT_TEXT.sub(lambda match: "\n" * match[0].count("\n"), text)):
        if piece == "{":
            scopes.append(scopes[-1].new_child())
        elif piece == "}":
            scopes.pop()
        elif label := _LABEL.fullmatch(piece):
            assert function is not None
            function.labels[label[1]] = len(function.body)
        elif len(scopes) == 1 and _is_function(piece):
            function = _function(piece)
            module.functions[function.name] = function
        elif registers := _REGISTERS.match(piece):
            _declare(module, scopes[-1], *registers.groups())
        elif variable := _VARIABLE.match(piece):
            _add_variable(module, variable)
        elif len(scopes) > 1 and not piece.startswith((".pragma", ".param")):
            assert function is not None
            function.body.append(_statement(line, piece, scopes[-1]))
    return module


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of labels, statements, function headers and the braces of scopes."""
    start = counted = 0
    line = 1
    in_operand = False
    for match in re.finditer(r"[;{}]", text):
        while label := _LABEL.match(text, start, match.start()):
            yield line, label[0].strip()
            start = label.end()
        pending = text[start : match.start()].strip()
        begin = _SPACE.match(text, start).end()
        line, counted = line + text.count("\n", counted, begin), begin
        if match[0] == "{" and pending and not _is_function(pending):
            in_operand = True
        elif match[0] == "}" and in_operand:
            in_operand = False
        else:
            if pending and not (match[0] == ";" and _is_function(pending)):  # a prototype
                yield line, pending
            if match[0] != ";":
                yield line, match[0]
            start = match.end()


def _is_function(piece: str) -> bool:
    return re.match(r"(?:\.(?:visible|extern|weak)\s+)*\.(?:entry|func)\b", piece) is not None


def _function(header: str) -> Function:
    match = _FUNCTION.search(header)
    assert match is not None, header
    results, parameters = (
        [_variable(found) for part in (match[group] or "").split(",") if (found := _VARIABLE.match(part.strip()))]
        for group in ("results", "parameters")
    )
    return Function(match["name"], match["kind"], results, parameters)


def _variable(match: re.Match[str]) -> Variable:
    dtype = DTYPES[match["type"]]
    count = int(match["count"] or 0) if match["array"] else 1
    align = int(match["align"] or dtype.itemsize)
    values = tuple(re.findall(r"[^\s{},]+", match["values"] or ""))
    return Variable(match["name"], match["space"], dtype, count, align, values)


def _add_variable(module: Module, match: re.Match[str]) -> None:
    """Enter a variable, or enlarge it: functions may give parameters of their calls the same name, and share them."""
    new = _variable(match)
    old = module.variables.get(new.name)
    if old is None or new.size > old.size:
        module.variables[new.name] = new


def _declare(module: Module, scope: ChainMap[str, int], type_name: str, names: str) -> None:
    for name in names.split(","):
        match = re.fullmatch(r"([\w$%]+)(?:<(\d+)>)?", name.strip())
        assert match is not None, names
        numbers = [""] if match[2] is None else range(int(match[2]))
        for number in numbers:
            scope[f"{match[1]}{number}"] = module.register(type_name)


def _statement(line: int, text: str, scope: ChainMap[str, int]) -> Statement:
    match = _STATEMENT.match(text)
    assert match is not None, text
    operands = re.findall(r"[{(\[].*?[})\]]|[^,{(\[]+", re.sub(r"\s+", "", match["operands"]))
    return Statement(line, " ".join(text.split()), match["guard"] or "", match["opcode"], tuple(operands), scope)
