"""What is read from a listing as nvdisasm prints it, on one that is short enough to be followed by eye."""

from __future__ import annotations

from tests.control_flow import blocks_of, interior, loops, main_loop, share

# a loop over rows around the main loop, whose loads are skipped for the last slice and checked at an edge
LISTING = """
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   FFMA R9, R9, R9, R9 ;
.L_x_1:
        /*0020*/              @!P0 BRA `(.L_x_4) ;
        /*0030*/                   BSSY B0, `(.L_x_3) ;
        /*0040*/               @P1 BRA P2, `(.L_x_2) ;
        /*0050*/                   ISETP.GE.AND P3, PT, R7, R8, PT ;
        /*0060*/              @!P3 LDG.E R2, desc[UR8][R4.64] ;
        /*0070*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*0080*/                   LDG.E R2, desc[UR8][R4.64] ;
.L_x_3:
        /*0090*/                   BSYNC B0 ;
.L_x_4:
        /*00a0*/                   LDS.128 R12, [R20] ;
        /*00b0*/                   FFMA R16, R12.reuse, R13, R16 ;
        /*00c0*/                   FFMA R17, R12, R14, R17 ;
        /*00d0*/              @!P0 BRA `(.L_x_5) ;
        /*00e0*/                   STS [R18+UR7], R2 ;
.L_x_5:
        /*00f0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0100*/               @P0 BRA `(.L_x_1) ;
        /*0110*/               @P4 BRA `(.L_x_0) ;
        /*0120*/                   EXIT ;
.L_x_6:
        /*0130*/                   BRA `(.L_x_6);
        /*0140*/                   NOP;
"""


def test_the_main_loop_is_the_innermost() -> None:
    blocks = blocks_of(LISTING)
    assert len(loops(blocks)) == 2
    _, body = main_loop(blocks)
    assert "R9, R9, R9, R9" not in {
        instruction.operands for index in body for instruction in blocks[index].instructions
    }


def test_an_interior_slice_is_loaded_without_checks_and_put_down() -> None:
    path = interior(blocks_of(LISTING))
    kinds = [instruction.kind for instruction in path]
    assert kinds == ["BRA", "BSSY", "BRA", "LDG", "BSYNC", "LDS", "FFMA", "FFMA", "BRA", "STS", "BAR", "BRA"]
    assert all(instruction.predicate == "" for instruction in path if instruction.kind == "LDG")
    assert share(path) == 2 / 12


def test_predicates_and_suffixes_are_told_apart() -> None:
    blocks = blocks_of(LISTING)
    [checked] = [i for block in blocks for i in block.instructions if i.kind == "LDG" and i.predicate]
    assert checked == ("!P3", "LDG.E", "R2, desc[UR8][R4.64]")
    assert sum(len(block.instructions) for block in blocks) == LISTING.count("/*")
