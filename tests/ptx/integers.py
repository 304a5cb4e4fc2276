"""Integer and bit instructions on arrays of lanes, exact in width and sign.

A key of `TABLE` is an opcode without its type; its signature names the types of sources and results: "t" the
instruction's type, "w" twice as wide, "n" u32, "p" a predicate, "c" the carry flag. Arithmetic of arrays wraps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[..., Any]


def bits(x: Array) -> int:
    """Return the width of an element."""
    return 8 * x.dtype.itemsize


def unsigned(x: Array) -> Array:
    """Return the same bits without a sign."""
    return x.view(f"u{x.dtype.itemsize}")


def wider(x: Array) -> Array:
    """Return the same numbers in twice the width."""
    return x.astype(f"{x.dtype.kind}{2 * x.dtype.itemsize}")


def multiply_wide(a: Array, b: Array) -> Array:
    """Return whole products."""
    return wider(a) * wider(b)


def multiply_high(a: Array, b: Array) -> Array:
    """Return the upper halves of products."""
    if bits(a) < 64:
        return (multiply_wide(a, b) >> bits(a)).astype(a.dtype)
    low = 2**32 - 1
    (a0, a1), (b0, b1) = (((x := unsigned(v)) & low, x >> 32) for v in (a, b))
    middle = a1 * b0 + (a0 * b0 >> 32)
    high = a1 * b1 + (middle >> 32) + ((middle & low) + a0 * b1 >> 32)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, unsigned(b), 0) - np.where(b < 0, unsigned(a), 0)
    return high.view(a.dtype)


def divide(a: Array, b: Array) -> Array:
    """Return quotients rounded towards zero, all ones where the divisor is zero."""
    return np.where(b == 0, ~np.zeros_like(b), (a - np.fmod(a, b)) // b)


def remainder(a: Array, b: Array) -> Array:
    """Return remainders with the dividend's sign, the dividend where the divisor is zero."""
    return np.where(b == 0, a, np.fmod(a, b))


def shift_left(a: Array, n: Array) -> Array:
    """Shift by at most the width."""
    return a << np.minimum(n, bits(a)).astype(a.dtype)


def shift_right(a: Array, n: Array) -> Array:
    """Shift by at most the width, the sign coming in."""
    return a >> np.minimum(n, bits(a)).astype(a.dtype)


def funnel(amount: Function, left: bool) -> Function:
    """Return the shift of two words side by side, `a` the lower one, by some function of the distance."""

    def shift(a: Array, b: Array, n: Array) -> Array:
        pair, distance = b.astype("u8") << 32 | a, amount(n).astype("u8")
        shifted = pair << distance >> 32 if left else pair >> distance
        return shifted.astype("u4")

    return shift


def reverse(x: Array) -> Array:
    """Return the bits in opposite order."""
    octets = x[:, None].view("u1")
    mirrored = np.packbits(np.unpackbits(octets, axis=1, bitorder="little"), axis=1)[:, ::-1]
    return np.ascontiguousarray(mirrored).view(x.dtype)[:, 0]


def leading_zeros(x: Array) -> Array:
    """Return how many zeros lie above the highest one."""
    octets = np.ascontiguousarray(x)[:, None].view("u1")[:, ::-1]
    ones = np.unpackbits(octets, axis=1)
    return np.where(x == 0, bits(x), ones.argmax(1)).astype("u4")


def highest(x: Array) -> Array:
    """Return the place of the highest bit that is not the sign, all ones where there is none."""
    magnitude = unsigned(np.where(x < 0, ~x, x))
    return (bits(x) - 1 - leading_zeros(magnitude).astype("i4")).astype("u4")


def distance_of_highest(x: Array) -> Array:
    """Return how far that bit is from the top, all ones where there is none."""
    place = highest(x)
    return np.where(place == 2**32 - 1, place, bits(x) - 1 - place)


def extract(a: Array, position: Array, length: Array) -> Array:
    """Return a field of bits; the sign bit of one that ends beyond the number is the number's own."""
    position, length = (np.minimum(n & 255, bits(a) + 1) for n in (position, length))
    field = shift_right(a, position)
    drop = np.where(length > bits(a), 0, bits(a) - length)
    return np.where(length == 0, np.zeros_like(a), shift_right(shift_left(field, drop), drop))


def insert(a: Array, b: Array, position: Array, length: Array) -> Array:
    """Return b with a field of bits replaced by the lowest bits of a."""
    position, length = position & 255, length & 255
    ones = ~np.zeros_like(b)
    mask = shift_left(~shift_left(ones, length), position)
    return b & ~mask | shift_left(a, position) & mask


def permute(a: Array, b: Array, selector: Array) -> Array:
    """Return four bytes of the eight in a and b, each as a nibble of the selector says."""
    pair = b.astype("u8") << 32 | a
    result = np.zeros(np.broadcast_shapes(pair.shape, selector.shape), "u8")
    for place in range(4):
        nibble = (selector >> 4 * place & 15).astype("u8")
        octet = pair >> (nibble & 7) * 8 & 255
        result |= np.where(nibble > 7, (octet >> 7) * 255, octet) << 8 * place
    return result.astype("u4")


def look_up(a: Array, b: Array, c: Array, table: Array) -> Array:
    """Return the bitwise function of three words that an eight-bit truth table describes."""
    result = np.zeros_like(a & b & c)
    for row in range(8):
        terms = (x if row & bit else ~x for x, bit in ((a, 4), (b, 2), (c, 1)))
        result |= np.bitwise_and.reduce(np.broadcast_arrays(*terms)) & -(table >> row & 1)
    return result


def add_carry(a: Array, b: Array, carry: Array | bool = False) -> tuple[Array, Array]:
    """Return sum and carry."""
    partial = unsigned(a) + unsigned(b)
    total = partial + np.asarray(carry).astype(partial.dtype)
    return total, (partial < unsigned(a)) | (total < partial)


def subtract_borrow(a: Array, b: Array, borrow: Array | bool = False) -> tuple[Array, Array]:
    """Return difference and borrow."""
    partial = unsigned(a) - unsigned(b)
    total = partial - np.asarray(borrow).astype(partial.dtype)
    return total, (partial > unsigned(a)) | (total > partial)


def after(product: Function, combine: Function) -> Function:
    """Return the multiply-add of a product and a way to add."""
    return lambda a, b, *rest: combine(product(a, b), *rest)


def first(function: Function) -> Function:
    """Return the function without its second result."""
    return lambda *arguments: function(*arguments)[0]


COMPARISONS: dict[str, Function] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip

TABLE: dict[str, tuple[Function, str]] = {
    "add": (np.add, "tt>t"),
    "sub": (np.subtract, "tt>t"),
    "mul.lo": (np.multiply, "tt>t"),
    "mul.hi": (multiply_high, "tt>t"),
    "mul.wide": (multiply_wide, "tt>w"),
    "mad.lo": (after(np.multiply, np.add), "ttt>t"),
    "mad.hi": (after(multiply_high, np.add), "ttt>t"),
    "mad.wide": (after(multiply_wide, np.add), "ttw>w"),
    "div": (divide, "tt>t"),
    "rem": (remainder, "tt>t"),
    "abs": (np.absolute, "t>t"),
    "neg": (np.negative, "t>t"),
    "min": (np.minimum, "tt>t"),
    "max": (np.maximum, "tt>t"),
    "and": (np.bitwise_and, "tt>t"),
    "or": (np.bitwise_or, "tt>t"),
    "xor": (np.bitwise_xor, "tt>t"),
    "not": (np.bitwise_not, "t>t"),
    "shl": (shift_left, "tn>t"),
    "shr": (shift_right, "tn>t"),
    "shf.l.wrap": (funnel(lambda n: n % 32, left=True), "ttn>t"),
    "shf.r.wrap": (funnel(lambda n: n % 32, left=False), "ttn>t"),
    "shf.l.clamp": (funnel(lambda n: np.minimum(n, 32), left=True), "ttn>t"),
    "shf.r.clamp": (funnel(lambda n: np.minimum(n, 32), left=False), "ttn>t"),
    "brev": (reverse, "t>t"),
    "popc": (lambda x: np.bitwise_count(x).astype("u4"), "t>n"),
    "clz": (leading_zeros, "t>n"),
    "bfind": (highest, "t>n"),
    "bfind.shiftamt": (distance_of_highest, "t>n"),
    "bfe": (extract, "tnn>t"),
    "bfi": (insert, "ttnn>t"),
    "prmt": (permute, "ttn>t"),
    "lop3": (look_up, "tttn>t"),
    "selp": (lambda a, b, p: np.where(p, a, b), "ttp>t"),
    "add.cc": (add_carry, "tt>tc"),
    "addc": (first(add_carry), "ttc>t"),
    "addc.cc": (add_carry, "ttc>tc"),
    "sub.cc": (subtract_borrow, "tt>tc"),
    "subc": (first(subtract_borrow), "ttc>t"),
    "subc.cc": (subtract_borrow, "ttc>tc"),
    "mad.lo.cc": (after(np.multiply, add_carry), "ttt>tc"),
    "mad.hi.cc": (after(multiply_high, add_carry), "ttt>tc"),
    "madc.lo": (after(np.multiply, first(add_carry)), "tttc>t"),
    "madc.hi": (after(multiply_high, first(add_carry)), "tttc>t"),
    "madc.lo.cc": (after(np.multiply, add_carry), "tttc>tc"),
    "madc.hi.cc": (after(multiply_high, add_carry), "tttc>tc"),
}
