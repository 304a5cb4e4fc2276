"""Kernels that numba compiles to PTX, interpreted: against NumPy, and with every fault that must be found."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from numba import float32, float64, int32, int64, types, uint32, uint64

from tests.plain_philox import plain_philox
from tests.ptx import Fault, launch, load, unwritten
from tests.ptx.compile import compiled, compiled_text, cuda

TYPES = {np.float32: float32, np.float64: float64, np.int32: int32, np.int64: int64, np.uint32: uint32}


def elementwise(function: Callable[[Any], Any]) -> Callable[..., None]:
    """Return the kernel y = function(x)."""
    if isinstance(function, FunctionType):
        function = cuda.jit(function, device=True)

    def kernel(x, y):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = function(x[i])

    return kernel


def applied(function: Callable[[Any], Any], x: Any, to: Any, **options: bool) -> Any:
    """Return a kernel's function(x), its last block incomplete."""
    program = compiled(elementwise(function), TYPES[x.dtype.type][::1], TYPES[to][::1], **options)
    y = np.zeros(x.shape, to)
    launch(program, -(-x.size // 32), 32, x, unwritten(y))
    return y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", [math.exp, math.log, math.log1p, math.tanh, math.sin, math.sqrt])
def test_elementary_functions(function: Callable[[float], float], dtype: Any) -> None:
    # up to arguments of a sine that only a function of its own, which is called, can reduce
    x = np.concatenate([np.geomspace(1e-3, 80, 70), 10.0 ** np.arange(3, 9) * (function is math.sin)]).astype(dtype)
    x = x[x > 0]
    expected = [function(float(value)) for value in x]
    np.testing.assert_allclose(applied(function, x, dtype), expected, rtol=3 * np.finfo(dtype).eps, atol=1e-300)


@pytest.mark.parametrize("function", [math.exp, math.log, math.tanh])
def test_approximate_functions(function: Callable[[float], float]) -> None:
    x = np.geomspace(0.01, 20, 70).astype(np.float32)
    expected = [function(float(value)) for value in x]
    np.testing.assert_allclose(applied(function, x, np.float32, fastmath=True), expected, rtol=1e-5, atol=1e-6)


def test_conversions() -> None:
    x = np.array([0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, 123456.789])
    np.testing.assert_array_equal(applied(lambda v: int64(v), x, np.int64), np.trunc(x))
    np.testing.assert_array_equal(applied(lambda v: round(v), x, np.int64), np.rint(x))
    np.testing.assert_array_equal(applied(lambda v: float32(v), x, np.float32), x.astype(np.float32))
    whole = np.array([0, 1, -1, 2**31 - 1, -(2**31)], np.int32)
    np.testing.assert_array_equal(applied(lambda v: uint32(v), whole, np.uint32), whole.astype(np.uint32))
    divided = applied(lambda v: v // int32(3) * 7 + v % int32(7), whole, np.int64)
    np.testing.assert_array_equal(divided, whole.astype(np.int64) // 3 * 7 + whole % 7)


def philox(words, key, out):
    i = cuda.grid(1)
    if i < out.shape[0]:
        c0, c1, c2, c3 = words[i, 0], words[i, 1], words[i, 2], words[i, 3]
        k0, k1 = key
        for _ in range(10):
            p0, p1 = uint64(0xD2511F53) * uint64(c0), uint64(0xCD9E8D57) * uint64(c2)
            c0, c1 = uint32(uint32(p1 >> uint64(32)) ^ c1 ^ k0), uint32(p1)
            c2, c3 = uint32(uint32(p0 >> uint64(32)) ^ c3 ^ k1), uint32(p0)
            k0, k1 = uint32(k0 + uint32(0x9E3779B9)), uint32(k1 + uint32(0xBB67AE85))
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = c0, c1, c2, c3


def test_philox_of_a_matrix_and_a_tuple() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (37, 4), np.uint32)
    key = np.uint32(2**32 - 1), np.uint32(0x12345678)
    out = np.zeros_like(words)
    program = compiled(philox, uint32[:, ::1], types.UniTuple(uint32, 2), uint32[:, ::1])
    launch(program, 2, 32, words, key, unwritten(out))
    expected = [plain_philox(tuple(map(int, row)), tuple(map(int, key))) for row in words]
    assert [tuple(row) for row in out.tolist()] == expected


SIDE, SLICE = 64, 8  # of a block's tile, of which each of 64 threads has 8 x 8


def product(a, b, c):
    left = cuda.shared.array((SLICE, SIDE), float32)
    right = cuda.shared.array((SLICE, SIDE), float32)
    tile = cuda.local.array((8, 8), float32)
    t = int32(cuda.threadIdx.x)
    row, column = t // int32(8) * int32(8), t % int32(8) * int32(8)
    top, start = int32(cuda.blockIdx.y) * int32(SIDE), int32(cuda.blockIdx.x) * int32(SIDE)
    n, depth, m = int32(a.shape[0]), int32(a.shape[1]), int32(b.shape[1])
    for i in range(8):
        for j in range(8):
            tile[i, j] = float32(0)
    for first in range(0, depth, SLICE):
        cuda.syncthreads()
        for k in range(SLICE):
            inside = first + k < depth
            left[k, t] = a[top + t, first + k] if inside and top + t < n else float32(0)
            right[k, t] = b[first + k, start + t] if inside and start + t < m else float32(0)
        cuda.syncthreads()
        for k in range(SLICE):
            for i in range(8):
                for j in range(8):
                    tile[i, j] += left[k, row + i] * right[k, column + j]
    for i in range(8):
        for j in range(8):
            if top + row + i < n and start + column + j < m:
                c[top + row + i, start + column + j] = tile[i, j]


@pytest.mark.parametrize(("n", "depth", "m"), [(1, 1, 1), (67, 13, 35), (130, 20, 65)])
def test_matrix_product(n: int, depth: int, m: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((n, depth), np.float32), rng.standard_normal((depth, m), np.float32)
    c = np.zeros((n, m), np.float32)
    program = compiled(product, *[float32[:, ::1]] * 3)
    counts = launch(program, (-(-m // SIDE), -(-n // SIDE)), SIDE, a, b, unwritten(c))
    np.testing.assert_allclose(c, a.astype(float) @ b.astype(float), atol=2e-6 * depth)
    slices, blocks = -(-depth // SLICE), -(-n // SIDE) * -(-m // SIDE)
    assert counts["bar.sync"] == 2 * slices * blocks * SIDE
    assert counts["fma.rn.f32"] == SLICE * slices * blocks * SIDE * 64


@pytest.mark.parametrize("barrier", [0, 1])
def test_every_barrier_of_the_product_is_needed(barrier: int) -> None:
    before, *rest = re.split(r"(bar\.sync\s+0;)", compiled_text(product, *[float32[:, ::1]] * 3))
    assert len(rest) == 4
    del rest[2 * barrier]
    a = np.ones((SIDE, 2 * SLICE), np.float32)
    with pytest.raises(Fault, match="race"):
        launch(
            load("".join([before, *rest])), 1, SIDE, a, np.ones_like(a.T), unwritten(np.zeros((SIDE, SIDE), np.float32))
        )


def collatz(x, steps):
    i = cuda.grid(1)
    if i >= x.size:
        return
    value, count = x[i], 0
    while value != 1:
        value = value // 2 if value % 2 == 0 else 3 * value + 1
        count += 1
    steps[i] = count


def test_a_loop_that_lanes_leave_at_different_times() -> None:
    def steps(value: int) -> int:
        return 0 if value == 1 else 1 + steps(value // 2 if value % 2 == 0 else 3 * value + 1)

    x, found = np.arange(1, 101), np.zeros(100, np.int64)
    launch(compiled(collatz, int64[::1], int64[::1]), 4, 32, x, unwritten(found))
    assert found.tolist() == [steps(int(value)) for value in x]


def block_sums(x, y):
    partial = cuda.shared.array(64, float64)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    partial[t] = x[i] if i < x.size else 0.0
    half = 32
    while half > 0:
        cuda.syncthreads()
        if t < half:
            partial[t] += partial[t + half]
        half //= 2
    if t == 0:
        y[cuda.blockIdx.x] = partial[0]


@pytest.mark.parametrize("blocks", [1, 3, 200])  # more than run together
def test_barriers_in_a_loop(blocks: int) -> None:
    x = np.random.default_rng(0).standard_normal(64 * blocks - 11)
    y = np.zeros(blocks)
    launch(compiled(block_sums, float64[::1], float64[::1]), blocks, 64, x, unwritten(y))
    expected = np.append(x, np.zeros(11)).reshape(blocks, 64).sum(1)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def reverse(x, y):
    kept, same = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    t = cuda.threadIdx.x
    kept[t] = x[t]
    cuda.syncthreads()
    y[t] = kept[x.size - 1 - t]
    same[t] = 0


def test_dynamic_shared_memory() -> None:
    x, y = np.arange(40, dtype=np.float32), np.zeros(40, np.float32)
    program = compiled(reverse, float32[::1], float32[::1])
    with pytest.raises(Fault, match="race: write of what another thread reads"):
        launch(program, 1, 40, x, unwritten(y), dynamic=160)
    with pytest.raises(Fault, match="out of bounds of shared"):
        launch(program, 1, 40, x, unwritten(y), dynamic=156)


def leave_early(x, y, n):
    kept = cuda.shared.array(64, float32)
    t = int32(cuda.threadIdx.x)
    if t >= n:
        return
    kept[t] = x[t]
    cuda.syncthreads()
    y[t] = kept[n - int32(1) - t]


def test_lanes_that_have_exited_do_not_hold_up_a_barrier() -> None:
    x, y = np.arange(40, dtype=np.float32), np.zeros(40, np.float32)
    launch(compiled(leave_early, float32[::1], float32[::1], int32), 1, 64, x, unwritten(y), np.int32(40))
    np.testing.assert_array_equal(y, x[::-1])


def transpose(x, y):
    i, j = cuda.grid(2)
    if i < y.shape[0] and j < y.shape[1]:
        y[i, j] = x[j, i]


def test_strided_arrays_in_two_dimensions() -> None:
    x = np.arange(7 * 22, dtype=np.float32).reshape(7, 22)[:, ::-2]
    wide = np.zeros((11, 14), np.float32)
    y = wide[:, ::2]
    matrix = types.Array(float32, 2, "A")
    launch(compiled(transpose, matrix, matrix), (3, 2), (4, 4), x, unwritten(y))
    np.testing.assert_array_equal(y, x.T)
    assert not wide[:, 1::2].any()


def exchange(x, y, divisor, offset, rounds, barrier, accumulate):
    kept = cuda.shared.array(64, float32)
    t = int32(cuda.threadIdx.x)
    for _ in range(rounds):
        kept[t // divisor] = x[t]
        if barrier:
            cuda.syncthreads()
        neighbour = kept[(t ^ int32(1)) + offset]
        y[t] = neighbour + y[t] if accumulate else neighbour


# What is passed to `exchange`, with how many threads and of how many elements, and the fault to be found.
RIGHT: dict[str, int] = {"divisor": 1, "offset": 0, "rounds": 1, "barrier": 1, "accumulate": 0}
FAULTS = {
    "a write behind the end of y": (64, 60, {}, "out of bounds of global"),
    "a read behind the end of x": (64, 56, {}, "out of bounds of global"),
    "a read behind shared memory": (64, 64, {"offset": 64}, "out of bounds of shared"),
    "a read of what nobody wrote": (63, 64, {}, "shared memory that nothing wrote"),
    "a read of output": (64, 64, {"accumulate": 1}, "global memory that nothing wrote"),
    "no barrier before reading": (64, 64, {"barrier": 0}, "race: read of what another thread writes"),
    "no barrier before writing again": (64, 64, {"rounds": 2}, "race: write of what another thread reads"),
    "two writers": (64, 64, {"divisor": 2}, "race: write of what another thread writes"),
}


def run_exchange(threads: int, size: int, **changes: int) -> tuple[Any, Any]:
    x, y = np.arange(size, dtype=np.float32), np.zeros(size, np.float32)
    program = compiled(exchange, float32[::1], float32[::1], *[int32] * 5)
    launch(program, 1, threads, x, unwritten(y), *(RIGHT | changes).values())
    return x, y


@pytest.mark.parametrize("case", FAULTS)
def test_planted_faults_are_found(case: str) -> None:
    threads, size, changes, message = FAULTS[case]
    with pytest.raises(Fault, match=message):
        run_exchange(threads, size, **changes)


def test_the_right_program_has_no_fault() -> None:
    x, y = run_exchange(64, 64)
    np.testing.assert_array_equal(y, x.reshape(-1, 2)[:, ::-1].ravel())
    run_exchange(62, 64)
