"""Philox4x32-10, Sobol points and the noise contract's words once more, in plain Python integers."""

from __future__ import annotations

from collections.abc import Sequence

MASK = 2**32 - 1


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Return the four words of a counter under a key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for step in range(10):
        left, right = (k0 + step * 0x9E3779B9) & MASK, (k1 + step * 0xBB67AE85) & MASK
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ left, low1, high0 ^ c3 ^ right, low0
    return c0, c1, c2, c3


def plain_sobol(i: int, directions: Sequence[int], seed: int, flip: int) -> int:
    """Return point i of the latent with these direction numbers, scrambled."""
    x = 0
    for bit, number in enumerate(directions):
        x ^= number * ((i ^ i // 2) // 2**bit % 2)
    x = int(f"{x:032b}"[::-1], 2)
    x ^= x * 0x3D20ADEA & MASK
    x = (x + seed) * (seed // 2**16 | 1) & MASK
    x ^= x * 0x05526C56 & MASK
    x ^= x * 0x53A22864 & MASK
    return int(f"{x:032b}"[::-1], 2) ^ flip


def plain_word(sampler: str, seed: int, b: int, i: int, k: int, directions: Sequence[int] = ()) -> int:
    """Return the word of eps[b, i, k]; `directions` are those of the latent, for "sobol"."""
    if sampler == "antithetic" and i % 2:
        return MASK - plain_word("iid", seed, b, i - 1, k)
    if sampler == "sobol":
        hashed, flip, _, _ = plain_philox((k, MASK, MASK, b), (seed % 2**32, seed // 2**32))
        return plain_sobol(i, directions, hashed, flip)
    block = i // 4
    return plain_philox((k, block % 2**32, block // 2**32, b), (seed % 2**32, seed // 2**32))[i % 4]
