"""The PTX interpreter on texts written by hand: control, memory, arguments, and the faults of single instructions."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.ptx import Fault, launch, load
from tests.ptx.text import entry

STORE = "mad.wide.u32 %rd1, %r0, 4, %rd0; st.global.u32 [%rd1], %r1;"


def run(body: str, *arrays: Any, threads: int = 4, blocks: int = 1, before: str = "") -> Any:
    return launch(load(entry(body, len(arrays), before)), blocks, threads, *arrays)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "add.u64 %rd1, %rd0, 8; ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];",
            "no multiple of 16: thread (0, 0, 0)",
        ),
        ("mad.wide.u32 %rd1, %r0, 2, %rd0; ld.global.u32 %r1, [%rd1];", "no multiple of 4: thread (1, 0, 0)"),
        ("ld.global.u64 %rd1, [%rd0+60];", "no multiple of 8"),
        (
            "mad.wide.u32 %rd1, %r0, 4, %rd0; ld.global.u32 %r1, [%rd1+52];",
            "out of bounds of global memory: thread (3,",
        ),
        ("ld.global.u32 %r1, [%rd0+-4];", "out of bounds of global"),
        ("mov.u64 %rd1, 0; ld.global.u32 %r1, [%rd1];", "out of bounds of global"),
        ("st.shared.u32 [table+32], %r0;", "out of bounds of shared"),
        ("ld.shared.u32 %r1, [table];", "shared memory that nothing wrote"),
        ("ld.local.u32 %r1, [own];", "local memory that nothing wrote"),
        ("st.local.v2.u32 [own+4], {%r0, %r0};", "no multiple of 8"),
        ("st.shared.v2.u32 [table], {%r0, %r0};", "no multiple of 8"),  # which it may be by luck, but is not declared
        ("st.local.u64 [own+8], %rd0;", "out of bounds of local"),
        ("st.shared.u32 [table], %r0;", "race: write of what another thread writes"),
        ("setp.eq.u32 %p1, %r0, 2; @%p1 trap;", "trap: thread (2, 0, 0) of block (0, 0, 0), line"),
    ],
)
def test_faults_of_instructions(body: str, message: str) -> None:
    variables = ".shared .align 4 .b8 table[32];\n.local .align 8 .b8 own[8];"
    with pytest.raises(Fault) as caught:
        run(body, np.zeros(16, np.uint32), before=variables)
    assert message in str(caught.value)


def test_a_fault_names_line_block_and_thread() -> None:
    text = entry("mov.u32 %r1, %ctaid.x; mad.lo.u32 %r1, %r1, 4, %r0;" + STORE.replace("%r0", "%r1"), 1)
    line = 1 + text[: text.index("st.global")].count("\n")
    with pytest.raises(Fault) as caught:
        launch(load(text), 5, 4, np.zeros(14, np.uint32))
    assert str(caught.value).endswith(f"thread (2, 0, 0) of block (3, 0, 0), line {line}: st.global.u32 [%rd1], %r1")


@pytest.mark.parametrize(
    "text",
    [
        "atom.global.add.u32 %r1, [%rd0], 1",
        "add.rz.f64 %rd1, %rd2, %rd3",
        "add.u32 %r1, %r2, %r3, %r4",
        "add.u32 %r1, %r2",
        "add.u32 %r1, %r2, %undeclared",
        "shfl.sync.down.b32 %r1, %r2, 1, 31, -1",
        "bar.sync 1",
        "bar.sync 0, 64",
        "ld.global.acquire.sys.u32 %r1, [%rd0]",
        "mov.u32 %r1, %clock",
        "nanosleep 5",
        "call vprintf, (a, b)",
    ],
)
def test_what_is_unknown_is_refused(text: str) -> None:
    with pytest.raises(NotImplementedError, match=r"line \d+: .*" + re.escape(text)):
        load(entry(f"{text};", 1))


def results(body: str, before: str = "") -> list[int]:
    """Return %r1 of four threads."""
    out = np.zeros(4, np.uint32)
    run(body + STORE, out, before=before)
    return out.tolist()


def test_warps_may_wait_at_different_barriers() -> None:
    body = """mov.u32 %r1, LIMIT; setp.lt.u32 %p1, %r0, %r1; @%p1 bra FIRST;
              bar.sync 0; ret; FIRST: setp.eq.u32 %p1, %r0, 3; @%p1 exit; bar.sync 0;"""
    run(body.replace("LIMIT", "32"), np.zeros(1), threads=50)
    with pytest.raises(Fault, match=r"not all of the warp wait: thread \(0, 0, 0\)"):
        run(body.replace("LIMIT", "31"), np.zeros(1), threads=50)


def test_carry_goes_through_a_chain() -> None:
    chain = """mov.u32 %r2, 0xFFFFFFFF; add.cc.u32 %r3, %r2, %r0; addc.cc.u32 %r4, %r2, 0; addc.u32 %r5, 7, 0;
               sub.cc.u32 %r6, 1, %r0; subc.u32 %r7, 5, 0; mad.lo.u32 %r1, %r5, 100, %r7;"""
    assert results(chain) == [705, 805, 804, 804]


def test_predicated_instructions_and_divergent_branches() -> None:
    body = """setp.gt.u32 %p1, %r0, 1; setp.eq.or.u32 %p2|%p3, %r0, 0, %p1; mov.u32 %r1, 10;
              @%p1 add.u32 %r1, %r1, 5; @!%p2 bra AWAY; add.u32 %r1, %r1, 100;
              AWAY: @%p3 add.u32 %r1, %r1, 1000;"""
    assert results(body) == [110, 1010, 1115, 1115]


def test_a_branch_by_index() -> None:
    body = """mov.u32 %r1, 0; ways: .branchtargets A, B, C, A; brx.idx %r0, ways;
              A: add.u32 %r1, %r1, 1; B: add.u32 %r1, %r1, 10; C: add.u32 %r1, %r1, 100;"""
    assert results(body) == [111, 110, 100, 111]


FUNCTIONS = """
.func (.param .b32 result) square(.param .b32 x) {
    .reg .b32 %r<4>;
    ld.param.u32 %r1, [x];
    mul.lo.u32 %r2, %r1, %r1;
    st.param.b32 [result], %r2;
    ret;
}
.func (.param .b32 result) fourth(.param .b32 y) {
    .reg .b32 %r<4>;
    .param .b32 given;
    .param .b32 got;
    ld.param.u32 %r1, [y];
    st.param.b32 [given], %r1;
    call (got), square, (given);
    ld.param.u32 %r1, [got];
    st.param.b32 [given], %r1;
    call (got), square, (given);
    ld.param.u32 %r1, [got];
    st.param.b32 [result], %r1;
    ret;
}"""


def test_calls_of_functions() -> None:
    body = """
    .param .b32 a;
    .param .b32 b;
    setp.eq.u32 %p1, %r0, 1;
    mov.u32 %r1, 0;
    @%p1 bra AWAY;
    st.param.b32 [a], %r0;
    call.uni (b), fourth, (a);
    ld.param.u32 %r1, [b+0];
    AWAY:"""
    assert results(body, FUNCTIONS) == [0, 0, 16, 81]


VARIABLES = """
.const .align 4 .u32 table[4] = {5, 6, 0x10, -1};
.global .align 8 .b8 octets[8] = {1, 2, 3, 4, 255};
.shared .align 4 .b8 common_[16];
.local .align 4 .b8 own[4];"""


def test_initialised_variables() -> None:
    from_table = "mul.wide.u32 %rd2, %r0, 4; mov.u64 %rd3, table; add.u64 %rd3, %rd3, %rd2; ld.const.u32 %r1, [%rd3];"
    assert results(from_table, VARIABLES) == [5, 6, 16, 2**32 - 1]
    assert results("ld.global.s8 %r1, [octets+4];", VARIABLES) == [2**32 - 1] * 4
    assert results("ld.global.v2.u8 {%rs1, %rs2}, [octets+2]; mov.b32 %r1, {%rs2, %rs1};", VARIABLES) == [0x30004] * 4


# Threads 2 and 3 have an address in shared memory in %rd4, the others one in local memory.
MIXED = """
mov.u64 %rd2, common_;
cvta.shared.u64 %rd2, %rd2;
mad.wide.u32 %rd2, %r0, 4, %rd2;
mov.u64 %rd3, own;
cvta.local.u64 %rd3, %rd3;
setp.gt.u32 %p1, %r0, 1;
selp.b64 %rd4, %rd2, %rd3, %p1;
"""


def test_generic_addresses() -> None:
    body = "st.u32 [%rd4], %r0; ld.u32 %r2, [%rd4]; ld.u32 %r3, [table+4]; add.u32 %r1, %r2, %r3;"
    assert results(MIXED + body, VARIABLES) == [6, 7, 8, 9]
    with pytest.raises(Fault, match=r"local memory: thread \(0, 0, 0\)"):
        results(MIXED + "@!%p1 st.u32 [%rd4+8], %r0;", VARIABLES)
    with pytest.raises(Fault, match=r"shared memory that nothing wrote: thread \(2, 0, 0\)"):
        results(MIXED + "@!%p1 st.u32 [%rd4], %r0; ld.u32 %r1, [%rd4];", VARIABLES)


def test_vectors_are_packed_and_unpacked() -> None:
    body = "{ .reg .b32 %temp; mov.b64 %rd2, {%r0, 7}; mov.b64 {%temp, %r2}, %rd2; mov.b64 {%r3, _}, %rd2; "
    assert results(body + "mad.lo.u32 %r1, %r2, 10, %temp; } add.u32 %r1, %r1, %r3;") == [70, 72, 74, 76]


def test_special_registers() -> None:
    out = np.zeros(2 * 3 * 40, np.uint32)
    body = """mov.u32 %r1, %ctaid.y; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.y; mad.lo.u32 %r3, %r3, %r2, %r0;
              mov.u32 %r4, %nctaid.y; mad.lo.u32 %r5, %r1, 40, %r3; mul.wide.u32 %rd2, %r5, 4; add.u64 %rd2, %rd0, %rd2;
              mov.u32 %r6, %laneid; mov.u32 %r7, %warpid; mad.lo.u32 %r6, %r7, 100, %r6; mad.lo.u32 %r6, %r4, 1000, %r6;
              st.global.u32 [%rd2], %r6;"""
    launch(load(entry(body, 1)), (1, 6), (20, 2), out)
    assert out.tolist() == [6000 + t // 32 * 100 + t % 32 for t in range(40)] * 6


def test_counts_are_of_lanes() -> None:
    counts = run(
        "setp.lt.u32 %p1, %r0, 1; @%p1 bra AWAY; mov.u32 %r1, 0; AWAY: bar.sync 0;", np.zeros(1), threads=5, blocks=3
    )
    assert counts == {"ld.param.u64": 15, "mov.u32": 15 + 12, "setp.lt.u32": 15, "bra": 15, "bar.sync": 15, "ret": 15}


def test_a_scalar_of_another_width_is_refused() -> None:
    with pytest.raises(TypeError, match="for a parameter of 8 bytes"):
        launch(load(entry("", 0).replace("test()", "test(.param .u64 n)")), 1, 1, np.int32(1))


def test_a_read_only_array_is_not_written() -> None:
    x = np.zeros(4, np.uint32)
    x.flags.writeable = False
    with pytest.raises(Fault, match="write to a read-only array"):
        run("st.global.u32 [%rd0], %r0;", x)


def test_an_array_that_is_written_overlaps_no_other() -> None:
    x = np.arange(8, dtype=np.uint32)
    run("ld.global.u32 %r1, [%rd0]; ld.global.u32 %r1, [%rd1];", x, x[::2])
    with pytest.raises(ValueError, match="overlaps"):
        run("st.global.u32 [%rd0], %r0;", x, x[::2])
