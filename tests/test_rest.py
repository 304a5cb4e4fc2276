"""Waiting: the processor is told, on each kind of machine, and a kernel can sleep."""

from __future__ import annotations

import llvmlite.binding
import pytest
from llvmlite import ir

from mcelbo_kernels._compile import jit
from mcelbo_kernels.cpu import rest


def assembly(triple: str) -> str:
    """Return the machine code of a function that pauses once."""
    llvmlite.binding.initialize_all_targets()
    llvmlite.binding.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), []), "wait")
    builder = ir.IRBuilder(function.append_basic_block())
    rest.emit_pause(builder)
    builder.ret_void()
    machine = llvmlite.binding.Target.from_triple(triple).create_target_machine()
    return str(machine.emit_assembly(llvmlite.binding.parse_assembly(str(module))))


@pytest.mark.parametrize(
    ("triple", "instruction"),
    [
        ("x86_64-unknown-linux-gnu", "pause"),
        ("x86_64-pc-windows-msvc", "pause"),
        ("aarch64-unknown-linux-gnu", "isb"),
        ("arm64-apple-darwin22.0.0", "isb"),
    ],
)
def test_the_processor_is_told(triple: str, instruction: str) -> None:
    assert f"\t{instruction}\n" in assembly(triple)


def test_a_machine_without_a_word_for_it_just_waits() -> None:
    module = ir.Module()
    module.triple = "powerpc64le-unknown-linux-gnu"
    builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(ir.VoidType(), []), "wait").append_basic_block())
    rest.emit_pause(builder)
    assert not builder.block.instructions


@jit
def rest_often(turns: int) -> None:
    """Rest from the first turn to one that sleeps."""
    for turn in range(turns):
        rest.rest(turn)


def test_both_ways_of_resting_come_to_an_end() -> None:
    rest_often(rest.PAUSES + 3)
