"""What decoded instructions are made of, and what their decoding needs to know of the program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tests.ptx.memory import Lanes
from tests.ptx.operands import Operands, State
from tests.ptx.parse import Function, Statement

GONE, HELD = 1 << 50, 1 << 40  # the place of a lane that has exited, and what one at a barrier has on top of its own


class Action(NamedTuple):
    """What an instruction does for some lanes: it acts by `step`, or says by `jump` where in the code they go on."""

    step: Callable[[State, Lanes], None] | None = None
    jump: Callable[[State, Lanes], Any] | None = None


class Instruction(NamedTuple):
    """A decoded statement, the register and negation that guard it, and its action."""

    statement: Statement
    guard: tuple[int, bool] | None
    action: Action


@dataclass
class Context:
    """What a statement's meaning depends on.

    Attributes
    ----------
    symbols : addresses of variables
    dtypes : of registers
    carry : register of the carry flag
    entry_parameters : names
    functions : that may be called
    starts : where their code begins
    returns : registers that hold where they return to
    granules : fewest bytes that are accessed of a space, kept up to date
    function, labels : of the statement, with the places in the code that they mean
    """

    symbols: dict[str, int]
    dtypes: list[np.dtype[Any]]
    carry: int
    entry_parameters: set[str]
    functions: dict[str, Function]
    returns: dict[str, int]
    starts: dict[str, int] = field(default_factory=dict)
    granules: dict[str, int] = field(default_factory=lambda: {"shared": 16, "local": 16})
    function: str = ""
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)


Decoder = Callable[[Operands, int, Context], list[Action]]
