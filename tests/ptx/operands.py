"""Operands of instructions, decoded once: how to read them and how to write them, for any lanes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tests.ptx.integers import Array
from tests.ptx.memory import Lanes
from tests.ptx.parse import DTYPES, Statement

_ADDRESS = re.compile(r"\[([^+\-\]]+)(?:\+?(-?\d+))?\]")
_WORD = 2**64 - 1


class State(Protocol):
    """What instructions read and change."""

    registers: list[Array]
    special: dict[str, Array]
    parameters: dict[str, bytes]
    spaces: dict[str, Any]

    def count(self, lanes: Lanes) -> int:
        """Return how many lanes are meant."""


Source = Callable[[State, Lanes], Array]
Destination = Callable[[State, Lanes, Array], None]


@dataclass(frozen=True)
class Operands:
    """A statement's operands; `symbols` are the addresses of variables."""

    statement: Statement
    symbols: Mapping[str, int]
    dtypes: list[np.dtype[Any]]

    def __getitem__(self, position: int) -> str:
        return self.statement.operands[position]

    def source(self, text: str, type_name: str) -> Source:
        """Return how to read an operand: lanes' numbers, or a single one for all."""
        if text.startswith("!"):
            positive = self.source(text[1:], type_name)
            return lambda state, lanes: ~positive(state, lanes)
        number = self.statement.registers.get(text)
        if number is not None:
            return register_source(number, self.dtypes[number], DTYPES[type_name])
        if text.startswith("%"):
            return _special_source(text, DTYPES[type_name])
        if text in self.symbols:
            text = str(self.symbols[text])
        value = constant(text, DTYPES[type_name])
        return lambda state, lanes: value

    def destination(self, text: str, type_name: str) -> Destination:
        """Return how to write an operand; a wider register is extended with the sign that the type has."""
        if text == "_":
            return lambda state, lanes, values: None
        number = self.statement.registers[text]
        target, dtype = self.dtypes[number], DTYPES[type_name]
        extended = f"{'i' if dtype.kind == 'i' else 'u'}{target.itemsize}"

        def put(state: State, lanes: Lanes, values: Array) -> None:
            if dtype.itemsize < target.itemsize:
                bits = values if values.dtype.kind == "i" else values.view(f"u{dtype.itemsize}")
                values = bits.astype(extended)
            state.registers[number][lanes] = values.view(target)

        return put

    def vector(self, text: str) -> list[str]:
        """Return the operands that braces hold, or the only one."""
        return text.strip("{}").split(",")

    def address(self, text: str) -> Source:
        """Return how to read an address: one for each lane."""
        name, distance = base_and_offset(text)
        number = self.statement.registers.get(name)
        base = self.source(name, "u64" if number is None else f"u{8 * self.dtypes[number].itemsize}")
        offset = np.array([distance & _WORD], np.uint64)

        def address(state: State, lanes: Lanes) -> Array:
            return np.broadcast_to(base(state, lanes) + offset, state.count(lanes))

        return address


def base_and_offset(text: str) -> tuple[str, int]:
    """Return the register, variable or number in brackets and what is added to it."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise KeyError(text)
    return match[1], int(match[2] or 0)


def register_source(number: int, held: np.dtype[Any], dtype: np.dtype[Any]) -> Source:
    """Return how to read a register, of which a narrower type sees the lower bits."""
    if dtype.itemsize < held.itemsize:
        narrow = f"u{dtype.itemsize}"
        return lambda state, lanes: state.registers[number][lanes].astype(narrow).view(dtype)
    return lambda state, lanes: state.registers[number][lanes].view(dtype)


def _special_source(name: str, dtype: np.dtype[Any]) -> Source:
    if not re.fullmatch(r"%(n?tid|n?ctaid)\.[xyz]|%laneid|%warpid|%dynamic_smem_size", name):
        raise KeyError(name)
    return lambda state, lanes: state.special[name][lanes].astype(dtype)


def constant(text: str, dtype: np.dtype[Any]) -> Array:
    """Return one number: decimal, hexadecimal, or a float by its bits."""
    if text[:2].lower() in ("0f", "0d"):
        bits = f"u{4 if text[1] in 'fF' else 8}"
        value = np.array([int(text[2:], 16)], bits)
        return value.view(bits.replace("u", "f")).astype(dtype) if dtype.kind == "f" else value.view(dtype)
    if dtype.kind in "fb":
        return np.array([float(text)], dtype)
    whole = int(text.rstrip("U"), 0) & (1 << 8 * dtype.itemsize) - 1
    return np.array([whole], f"u{dtype.itemsize}").view(dtype)
