"""The PTX interpreter's instructions against Python's exact integers and fractions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.ptx.text import apply

INTEGERS = ("u32", "s32", "u64", "s64")
BITS = ("b32", "b64")
INF = float("inf")


def width(name: str) -> int:
    return int(name[1:])


def wrapped(x: int, name: str) -> int:
    """Return x as a number of that type."""
    x &= 2 ** width(name) - 1
    return x - 2 ** width(name) if name[0] == "s" and x >> width(name) - 1 else x


def numbers(name: str) -> st.SearchStrategy[int]:
    """Any number of a type, often one near a power of two."""
    power = st.integers(0, width(name)).flatmap(lambda e: st.sampled_from([2**e - 1, 2**e, 2**e + 1, -(2**e)]))
    return (power | st.integers(0, 2 ** width(name) - 1)).map(lambda x: wrapped(x, name))


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) if b else -1


def field(a: int, position: int, length: int, name: str) -> int:
    """Return what bfe does, in the words of the manual."""
    last, position, length = width(name) - 1, position & 255, length & 255
    sign = 0 if name[0] == "u" or not length else a >> min(position + length - 1, last) & 1
    bits = [a >> position + i & 1 if i < length and position + i <= last else sign for i in range(last + 1)]
    return sum(bit << i for i, bit in enumerate(bits))


def with_field(a: int, b: int, position: int, length: int, name: str) -> int:
    """Return what bfi does."""
    for i in range(length & 255):
        place = (position & 255) + i
        if place < width(name):
            b = b & ~(1 << place) | (a >> i & 1) << place
    return b


def permuted(a: int, b: int, selector: int) -> int:
    octets = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
    nibbles = [selector >> 4 * place & 15 for place in range(4)]
    return int.from_bytes([(octets[n & 7] >> 7) * 255 if n & 8 else octets[n & 7] for n in nibbles], "little")


def looked_up(a: int, b: int, c: int) -> int:
    """Return what lop3 does by table 0x1b."""
    return sum((0x1B >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32))


# By opcode: the types it is tested with, its signature as in `tests.ptx.integers`, and what it does in exact integers.
EXACT: dict[str, tuple[tuple[str, ...], str, Callable[..., int]]] = {
    "add": (INTEGERS, "tt>t", lambda t, a, b: a + b),
    "sub": (INTEGERS, "tt>t", lambda t, a, b: a - b),
    "mul.lo": (INTEGERS, "tt>t", lambda t, a, b: a * b),
    "mul.hi": (INTEGERS, "tt>t", lambda t, a, b: a * b >> width(t)),
    "mul.wide": (("u16", "s16", "u32", "s32"), "tt>w", lambda t, a, b: a * b),
    "mad.lo": (INTEGERS, "ttt>t", lambda t, a, b, c: a * b + c),
    "mad.hi": (INTEGERS, "ttt>t", lambda t, a, b, c: (a * b >> width(t)) + c),
    "mad.wide": (("u32", "s32"), "ttw>w", lambda t, a, b, c: a * b + c),
    "div": (INTEGERS, "tt>t", lambda t, a, b: quotient(a, b)),
    "rem": (INTEGERS, "tt>t", lambda t, a, b: a - b * quotient(a, b)),
    "min": (INTEGERS, "tt>t", lambda t, a, b: min(a, b)),
    "max": (INTEGERS, "tt>t", lambda t, a, b: max(a, b)),
    "abs": (("s32", "s64"), "t>t", lambda t, a: abs(a)),
    "neg": (("s32", "s64"), "t>t", lambda t, a: -a),
    "and": (BITS, "tt>t", lambda t, a, b: a & b),
    "or": (BITS, "tt>t", lambda t, a, b: a | b),
    "xor": (BITS, "tt>t", lambda t, a, b: a ^ b),
    "not": (BITS, "t>t", lambda t, a: ~a),
    "shl": (BITS, "tn>t", lambda t, a, n: a << min(n, width(t))),
    "shr": (INTEGERS, "tn>t", lambda t, a, n: a >> min(n, width(t))),
    "shf.l.wrap": (("b32",), "ttn>t", lambda t, a, b, n: (b << 32 | a) << n % 32 >> 32),
    "shf.r.wrap": (("b32",), "ttn>t", lambda t, a, b, n: (b << 32 | a) >> n % 32),
    "shf.l.clamp": (("b32",), "ttn>t", lambda t, a, b, n: (b << 32 | a) << min(n, 32) >> 32),
    "shf.r.clamp": (("b32",), "ttn>t", lambda t, a, b, n: (b << 32 | a) >> min(n, 32)),
    "brev": (BITS, "t>t", lambda t, a: int(f"{a:0{width(t)}b}"[::-1], 2)),
    "popc": (BITS, "t>n", lambda t, a: a.bit_count()),
    "clz": (BITS, "t>n", lambda t, a: width(t) - a.bit_length()),
    "bfind": (INTEGERS, "t>n", lambda t, a: max(a, ~a).bit_length() - 1),
    "bfind.shiftamt": (INTEGERS, "t>n", lambda t, a: width(t) - max(a, ~a).bit_length() if max(a, ~a) else -1),
    "bfe": (INTEGERS, "tnn>t", lambda t, a, p, n: field(a, p, n, t)),
    "bfi": (BITS, "ttnn>t", lambda t, a, b, p, n: with_field(a, b, p, n, t)),
    "prmt": (("b32",), "ttn>t", lambda t, a, b, n: permuted(a, b, n)),
    "lop3": (("b32",), "ttt>t", lambda t, a, b, c: looked_up(a, b, c)),
}


@pytest.mark.parametrize("opcode", EXACT)
@given(data=st.data())
def test_integer_instructions_are_exact(opcode: str, data: st.DataObject) -> None:
    names, signature, exact = EXACT[opcode]
    name = data.draw(st.sampled_from(names))
    meaning = {"t": name, "w": f"{name[0]}{2 * width(name)}", "n": "u32"}
    *sources, result = (meaning[letter] for letter in signature.replace(">", ""))
    distances = st.integers(0, 70) | numbers("u32")
    operands = [distances if letter == "n" else numbers(meaning[letter]) for letter in signature.split(">")[0]]
    rows = data.draw(st.lists(st.tuples(*operands), min_size=1, max_size=20))
    found = apply(
        f"{opcode}.{name}", tuple(sources), result, *zip(*rows, strict=True), then=", 0x1b" * (opcode == "lop3")
    )
    assert found.tolist() == [wrapped(exact(name, *row), result) for row in rows]


COMPARISONS = {name: (INTEGERS, getattr(operator, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}
COMPARISONS |= {name: (("u32", "u64"), holds) for name, holds in UNSIGNED.items()}


@pytest.mark.parametrize("comparison", COMPARISONS)
@given(data=st.data())
def test_integers_compare(comparison: str, data: st.DataObject) -> None:
    names, holds = COMPARISONS[comparison]
    name = data.draw(st.sampled_from(names))
    pairs = data.draw(st.lists(st.tuples(numbers(name), numbers(name)), min_size=1))
    found = apply(f"setp.{comparison}.{name}", (name, name), "pred", *zip(*pairs, strict=True))
    assert found.tolist() == [holds(*pair) for pair in pairs]


@given(st.sampled_from(INTEGERS), st.sampled_from((*INTEGERS, "u16", "s16", "u8", "s8")), st.booleans(), st.data())
def test_integers_convert(source: str, to: str, saturating: bool, data: st.DataObject) -> None:
    column = data.draw(st.lists(numbers(source), min_size=1))
    lowest, highest = (-(2 ** (width(to) - 1)), 2 ** (width(to) - 1) - 1) if to[0] == "s" else (0, 2 ** width(to) - 1)
    found = apply(f"cvt{'.sat' * saturating}.{to}.{source}", (source,), to, column)
    assert found.tolist() == [min(max(x, lowest), highest) if saturating else wrapped(x, to) for x in column]


def floats(name: str) -> st.SearchStrategy[float]:
    """Any finite number of a type, often one with few bits, of which sums lie in the middle between two others."""
    few = st.builds(math.ldexp, st.integers(-(2**24), 2**24), st.integers(-149, 100))
    return st.floats(width=width(name), allow_nan=False, allow_infinity=False) | few


def nearest(exact: Fraction, name: str, mode: str = "rn") -> float:
    """Return the number of a format that an exact one is rounded to."""
    with np.errstate(over="ignore"):
        near = np.array([float(exact)]).astype(f"f{width(name) // 8}")
        beside = (np.nextafter(near, near.dtype.type(end)) for end in (-INF, INF))
        three = [float(x[0]) for x in (near, *beside)]
    below, above = max(x for x in three if x <= exact), min(x for x in three if x >= exact)
    if mode != "rn":
        return {"rm": below, "rp": above, "rz": below if exact > 0 else above}[mode]
    apart = (exact - Fraction(below)) - (Fraction(above) - exact)
    even = min(below, above, key=lambda x: int(np.array([x], near.dtype).view(f"u{near.itemsize}")[0]) & 1)
    return below if apart < 0 else above if apart > 0 else even


def within(exact: Fraction, name: str) -> bool:
    return abs(exact) <= Fraction(float(np.finfo(f"f{width(name) // 8}").max))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@given(rows=st.lists(st.tuples(floats("f32"), floats("f32"), floats("f32")), min_size=1))
@example([(1 + 2.0**-12, 1 + 2.0**-12, 2.0**-80), (1 + 2.0**-12, 1 + 2.0**-12, -(2.0**-80))])  # double rounding errs
@example([(2.0**-75, 2.0**-75, 2.0**-149), (-(2.0**-75), 2.0**-75, 2.0**-149)])
def test_float32_multiply_add_rounds_once(mode: str, rows: list[tuple[float, float, float]]) -> None:
    exact = [Fraction(a) * Fraction(b) + Fraction(c) for a, b, c in rows]
    found = apply(f"fma.{mode}.f32", ("f32",) * 3, "f32", *zip(*rows, strict=True))
    for x, y in zip(exact, found.tolist(), strict=True):
        assert not within(x, "f32") or y == nearest(x, "f32", mode)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
@given(rows=st.lists(st.tuples(floats("f32"), floats("f32")), min_size=1))
def test_float32_arithmetic_is_rounded_as_it_says(name: str, mode: str, rows: list[tuple[float, float]]) -> None:
    exact = [getattr(operator, name)(Fraction(a), Fraction(b)) for a, b in rows]
    found = apply(f"{name}.{mode}.f32", ("f32", "f32"), "f32", *zip(*rows, strict=True))
    for x, y in zip(exact, found.tolist(), strict=True):
        assert not within(x, "f32") or y == nearest(x, "f32", mode)


def test_float32_multiply_add_of_what_is_not_finite_or_zero() -> None:
    huge = 2.0**127
    rows = [(INF, 1, -INF), (INF, 0, 1), (huge, huge, -INF), (huge, huge, 0), (-0.0, 1, -0.0), (1, 1, -1)]
    rest = {"rn": [INF, -0.0, 0.0], "rm": [float(np.finfo("f4").max), -0.0, -0.0]}
    for mode in rest:
        found = apply(f"fma.{mode}.f32", ("f32",) * 3, "f32", *zip(*rows, strict=True))
        assert list(map(str, found.tolist())) == ["nan", "nan", "-inf", *map(str, rest[mode])]


@given(st.lists(st.tuples(floats("f64"), floats("f64"), floats("f64")), min_size=1))
@example([(1 + 2.0**-27, 1 + 2.0**-26, 2.0**-110), (2.0**-600, 2.0**-474, 0.0), (2.0**600, 2.0**424, -(2.0**1023))])
@example([(-(2.0**-600), 2.0**-600, 0.0), (INF, 0.0, 1.0), (2.0**1000, 2.0**1000, -INF), (-0.0, 5.0, 0.0)])
def test_float64_multiply_add_rounds_once(rows: list[tuple[float, float, float]]) -> None:
    found = apply("fma.rn.f64", ("f64",) * 3, "f64", *zip(*rows, strict=True))
    for row, y in zip(rows, found.tolist(), strict=True):
        if np.isfinite(row).all():
            exact = Fraction(row[0]) * Fraction(row[1]) + Fraction(row[2])
            assert not within(exact, "f64") or y == float(exact)
        else:
            np.testing.assert_equal(y, row[2] if np.isinf(row[2]) else math.nan)


@pytest.mark.parametrize(
    ("mode", "whole"), [("rni", round), ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil)]
)
@given(source=st.sampled_from(["f32", "f64"]), to=st.sampled_from((*INTEGERS, "u16", "s16")), data=st.data())
def test_floats_become_integers(
    mode: str, whole: Callable[[float], int], source: str, to: str, data: st.DataObject
) -> None:
    near = numbers(to).map(lambda x: float(np.array([x]).astype(f"f{width(source) // 8}")[0]))
    column = data.draw(st.lists(floats(source) | near | st.floats(-9, 9, width=32), min_size=1))
    lowest, highest = wrapped(2 ** (width(to) - 1), to) if to[0] == "s" else 0, 2 ** (width(to) - (to[0] == "s")) - 1
    found = apply(f"cvt.{mode}.{to}.{source}", (source,), to, column)
    assert found.tolist() == [min(max(whole(x), lowest), highest) for x in column]


def test_nan_and_infinity_become_integers() -> None:
    column = [math.nan, INF, -INF]
    assert apply("cvt.rzi.s32.f32", ("f32",), "s32", column).tolist() == [0, 2**31 - 1, -(2**31)]
    assert apply("cvt.rzi.u32.f64", ("f64",), "u32", column).tolist() == [2**31, 2**32 - 1, 0]
    assert apply("cvt.rni.s64.f32", ("f32",), "s64", column).tolist() == [-(2**63), 2**63 - 1, -(2**63)]


@given(st.sampled_from(INTEGERS), st.sampled_from(["f32", "f64"]), st.data())
def test_integers_become_floats(source: str, to: str, data: st.DataObject) -> None:
    column = data.draw(st.lists(numbers(source), min_size=1))
    found = apply(f"cvt.rn.{to}.{source}", (source,), to, column)
    assert found.tolist() == [nearest(Fraction(x), to) for x in column]


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@given(st.lists(floats("f64"), min_size=1))
def test_float64_becomes_float32(mode: str, column: list[float]) -> None:
    found = apply(f"cvt.{mode}.f32.f64", ("f64",), "f32", column)
    for x, y in zip(column, found.tolist(), strict=True):
        assert not within(Fraction(x), "f32") or y == nearest(Fraction(x), "f32", mode)


def test_comparisons_of_nan() -> None:
    a, b = [1.0, math.nan, 2.0], [1.0, 1.0, 1.0]
    for name, expected in {
        "eq": [True, False, False], "ne": [False, False, True], "ge": [True, False, True], "lt": [False] * 3,
        "equ": [True, True, False], "neu": [False, True, True], "geu": [True] * 3, "ltu": [False, True, False],
        "num": [True, False, True], "nan": [False, True, False],
    }.items():  # fmt: skip
        assert apply(f"setp.{name}.f32", ("f32", "f32"), "pred", a, b).tolist() == expected, name


def test_smaller_and_larger() -> None:
    a, b = [0.0, -0.0, math.nan, 2.0, math.nan], [-0.0, 0.0, 1.0, math.nan, math.nan]
    for opcode, expected in {
        "min": ["-0.0", "-0.0", "1.0", "2.0", "nan"], "max": ["0.0", "0.0", "1.0", "2.0", "nan"],
        "min.NaN": ["-0.0", "-0.0", "nan", "nan", "nan"], "max.NaN": ["0.0", "0.0", "nan", "nan", "nan"],
    }.items():  # fmt: skip
        assert [str(float(x)) for x in apply(f"{opcode}.f32", ("f32", "f32"), "f32", a, b)] == expected


@pytest.mark.parametrize(
    ("opcode", "columns", "expected"),
    [
        ("mul.ftz.f32", [[2.0**-100, 2.0**-140, -(2.0**-140)], [2.0**-30, 2.0**20, 1.0]], ["0.0", "0.0", "-0.0"]),
        ("mul.f32", [[2.0**-100, 2.0**-140], [2.0**-30, 2.0**20]], [str(2.0**-130), str(2.0**-120)]),
        ("add.sat.f32", [[0.75, -2.0, math.nan], [0.5, 1.0, 0.0]], ["1.0", "0.0", "0.0"]),
        ("copysign.f32", [[-1.0, 1.0], [2.0, -0.0]], ["-2.0", "0.0"]),
        ("cvt.rni.f32.f32", [[2.5, -0.25, 1e30]], ["2.0", "-0.0", str(float(np.float32(1e30)))]),
        ("cvt.sat.f32.f32", [[1.5, -1.0, math.nan]], ["1.0", "0.0", "0.0"]),
        ("div.approx.f32", [[1.0, -1.0], [2.0**127, 4.0]], ["0.0", "-0.25"]),
        ("div.full.f32", [[1.0, -1.0], [2.0**127, 4.0]], [str(2.0**-127), "-0.25"]),
        ("rcp.rn.f32", [[4.0, -0.0]], ["0.25", "-inf"]),
        ("ex2.approx.ftz.f32", [[3.0, -149.0]], ["8.0", "0.0"]),
        ("lg2.approx.f32", [[8.0, 2.0**-149, 0.0]], ["3.0", "-149.0", "-inf"]),
        ("abs.f32", [[-0.0, math.nan]], ["0.0", "nan"]),
        ("neg.f32", [[-0.0, 1.0]], ["0.0", "-1.0"]),
    ],
)
def test_floating_point_specials(opcode: str, columns: list[list[float]], expected: list[str]) -> None:
    found = apply(opcode, ("f32",) * len(columns), "f32", *columns)
    assert [str(float(x)) for x in found] == expected


def test_classes_of_numbers() -> None:
    column = [0.0, 1.0, 2.0**-140, INF, math.nan]
    for name, expected in {
        "finite": [1, 1, 1, 0, 0], "infinite": [0, 0, 0, 1, 0], "number": [1, 1, 1, 1, 0],
        "notanumber": [0, 0, 0, 0, 1], "normal": [0, 1, 0, 0, 0], "subnormal": [0, 0, 1, 0, 0],
    }.items():  # fmt: skip
        assert apply(f"testp.{name}.f32", ("f32",), "pred", column).tolist() == expected


@given(st.lists(st.floats(2.0**-1000, 2.0**1000), min_size=1))
def test_a_coarse_reciprocal_has_half_a_word(column: list[float]) -> None:
    found = apply("rcp.approx.ftz.f64", ("f64",), "f64", column)
    np.testing.assert_allclose(found * column, 1.0, rtol=2.0**-19)
    assert not (found.view("u8") & 2**32 - 1).any()
