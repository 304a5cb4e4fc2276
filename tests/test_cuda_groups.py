"""Groups of threads that share out the sums of a tile: the kernels' PTX, interpreted, against NumPy.

The interpreter reports races and barriers that threads do not reach, here of sums that the groups do not divide, that
leave some of them nothing, and that are empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mcelbo_kernels.problem import Draw
from tests.cuda_targets import DeviceMemory, Interpreter
from tests.test_cuda_schedule import assert_right, layout_is_kept_by_kind, stack

from mcelbo_kernels.cuda import backward, layers, layout, quadratic  # isort: skip
from mcelbo_kernels.cuda.seam import Kernel, float32, float64  # isort: skip
from mcelbo_kernels.cuda.tile import LARGE, NARROW, SMALL, Tile  # isort: skip
from tests.cuda_kernels import REAL_OF  # isort: skip

Array = Any
TILES = [tile._replace(groups=groups) for tile, choices in layout.GROUPS.items() for groups in choices if groups > 1]
# rows, terms of a sum, columns
SHAPES = [(1, 1, 1), (70, 37, 67), (129, 9, 33), (3, 0, 5), (64, 96, 64)]
ON_ALL = pytest.mark.parametrize("tile", TILES, ids=lambda tile: "x".join(map(str, tile)))


def on_all_shapes(check: Callable[..., None]) -> Callable[..., None]:
    """Return the test that makes a check of each shape: together, so that each kernel is compiled once."""

    def test(tile: Tile) -> None:
        for shape in SHAPES:
            try:
                check(tile, shape)
            except Exception as error:
                error.add_note(f"{shape=}")
                raise

    test.__name__ = check.__name__
    return ON_ALL(test)


def numbers(tile: Tile, *shape: int) -> Array:
    """Small integers, of which all sums are exact in any order."""
    rng = np.random.default_rng(sum(shape))
    return rng.integers(-4, 5, shape).astype(np.float64 if REAL_OF[tile] == float64 else np.float32)


def run(kernel: Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
    Interpreter().launch(kernel, blocks, *arguments)


@on_all_shapes
def test_the_gradient_of_a_layers_input(tile: Tile, shape: tuple[int, int, int]) -> None:
    rows, terms, columns = shape
    da, weight, slope = numbers(tile, rows, terms), numbers(tile, terms, columns), numbers(tile, rows, columns)
    blocks, result = layout.tiles(tile, rows, columns), DeviceMemory(slope.copy())
    kernel = backward.backward(backward.Backward(tile, REAL_OF[tile], True))
    run(kernel, (blocks, 1), DeviceMemory(da), DeviceMemory(weight), result, rows, columns, terms, terms)
    np.testing.assert_array_equal(result.array, da @ weight * slope)


@on_all_shapes
def test_parts_of_the_gradient_of_the_latents(tile: Tile, shape: tuple[int, int, int]) -> None:
    rows, terms, columns = shape
    parts, piece, da, weight = 3, 16, numbers(tile, rows, terms), numbers(tile, columns, terms)
    result = DeviceMemory(np.empty((parts, rows, columns), da.dtype), written=False)
    kernel = backward.backward(backward.Backward(tile, REAL_OF[tile], False, transposed=True))
    blocks = layout.tiles(tile, rows, columns), parts
    run(kernel, blocks, DeviceMemory(da), DeviceMemory(weight), result, rows, columns, terms, piece)
    assert result.written.all()
    for part in range(parts):
        own = slice(part * piece, (part + 1) * piece)
        np.testing.assert_array_equal(result.array[part], da[:, own] @ weight[:, own].T)


@on_all_shapes
def test_the_gradients_of_weight_and_bias(tile: Tile, shape: tuple[int, int, int]) -> None:
    for upstream in (False, True):
        assert_gradients_of_weight_and_bias(tile, shape, upstream)


def assert_gradients_of_weight_and_bias(tile: Tile, shape: tuple[int, int, int], upstream: bool) -> None:
    outputs, rows, inputs = shape
    da, h, g = numbers(tile, rows, outputs), numbers(tile, rows, inputs), numbers(tile, rows + 2)
    result = DeviceMemory(np.empty(outputs * (inputs + 1), da.dtype), written=False)
    kernel = backward.weight_gradient(backward.WeightGradient(tile, REAL_OF[tile], upstream))
    given = DeviceMemory(da), DeviceMemory(g) if upstream else None, DeviceMemory(h), result
    run(kernel, (layout.tiles(tile, outputs, inputs), 1), *given, 2, rows, inputs, outputs, max(8, rows))
    weighted = da * g[2:, None] if upstream else da
    expected = np.concatenate([(weighted.T @ h).ravel(), weighted.sum(0)])
    np.testing.assert_array_equal(result.array, expected)


@on_all_shapes
def test_a_layers_output(tile: Tile, shape: tuple[int, int, int]) -> None:
    rows, terms, columns = shape
    h, weight, bias = numbers(tile, rows, terms), numbers(tile, columns, terms), numbers(tile, columns)
    result, slope = (DeviceMemory(np.empty((rows, columns), h.dtype), written=False) for _ in range(2))
    kernel = layers.hidden(layers.Hidden(tile, REAL_OF[tile], "relu", True))
    given = DeviceMemory(h), DeviceMemory(weight), DeviceMemory(bias), h.dtype.type(0), result, slope, None
    run(kernel, (layout.tiles(tile, rows, columns), 1), *given, 1, 0, rows, terms, columns)
    a = h @ weight.T + bias
    np.testing.assert_array_equal(result.array, np.maximum(a, 0))
    np.testing.assert_array_equal(slope.array, a > 0)


@on_all_shapes
def test_the_last_layers_errors(tile: Tile, shape: tuple[int, int, int]) -> None:
    (rows, terms, columns), n = shape, 7
    h, weight, bias = numbers(tile, rows, terms), numbers(tile, columns, terms), numbers(tile, columns)
    data = (rows + n - 1) // n
    x, w = numbers(tile, data, columns), numbers(tile, data, columns)
    down = layout.up(columns, tile.width)
    sums = DeviceMemory(np.empty((down, rows), h.dtype), written=False)
    da, dx, dw = (DeviceMemory(np.empty((rows, columns), h.dtype), written=False) for _ in range(3))
    kernel = layers.last(layers.Last(tile, REAL_OF[tile], "identity", "squared_error", True, True, True, True))
    given = DeviceMemory(h), DeviceMemory(weight), DeviceMemory(bias), h.dtype.type(0), DeviceMemory(x), DeviceMemory(w)
    place = columns, sums, da, dx, dw, n, 0, rows, terms, columns
    run(kernel, (layout.tiles(tile, rows, columns), 1), *given, *place)
    r = h @ weight.T + bias - np.repeat(x, n, 0)[:rows]
    scale = np.repeat(w, n, 0)[:rows]
    np.testing.assert_array_equal(sums.array.sum(0), (scale * r * r).sum(1))
    np.testing.assert_array_equal(da.array, 2 * scale * r)
    np.testing.assert_array_equal(dx.array, -2 * scale * r)
    np.testing.assert_array_equal(dw.array, r * r)


@ON_ALL
def test_the_quadratic_form(tile: Tile) -> None:
    rows, size, n = 70, 67, 7
    delta, root, a = numbers(tile, rows, size), numbers(tile, size, size), numbers(tile, 10, size)
    g, slope = root + root.T, numbers(tile, size, rows).T.copy()
    sums = DeviceMemory(np.empty((layout.up(size, tile.width), rows), delta.dtype), written=False)
    result = DeviceMemory(slope.copy())
    given = DeviceMemory(delta), DeviceMemory(g), DeviceMemory(a), sums, result
    kernel = quadratic.form(quadratic.Form(tile, REAL_OF[tile], True, True))
    run(kernel, (layout.tiles(tile, rows, size), 1), *given, n, 0, rows, size, size)
    u, coupling = delta @ g, np.repeat(a, n, 0)
    np.testing.assert_array_equal(sums.array.sum(0), (delta * (u - 2 * coupling)).sum(1))
    np.testing.assert_array_equal(result.array, 2 * (u - coupling) * slope)


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_a_call(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "FEWEST_SLICES", 1)
    layout_is_kept_by_kind()
    assert_right(stack((33, 40, 70), 3, Draw(30, 5), real))
    layout_is_kept_by_kind()


def test_groups_come_before_parts_and_end_where_there_are_warps_enough() -> None:
    # 40 x 13 tiles of two warps are 1040 warps and need none; 24 x 13 take two groups, 8 x 13 four
    assert layout.tile_for(2560, 784, 512, float32) == SMALL
    assert layout.tile_for(1536, 784, 512, float32) == SMALL._replace(groups=2)
    assert layout.tile_for(512, 784, 512, float32) == SMALL._replace(groups=4)
    # four slices for each group
    assert layout.tile_for(512, 784, 127, float32) == SMALL._replace(groups=2)
    assert layout.tile_for(512, 784, 32, float32) == SMALL
    # one large tile for each multiprocessor in place of four small ones, but not two in place of four
    assert layout.tile_for(2048, 784, 512, float32) == LARGE
    assert layout.tile_for(8192, 784, 512, float32) == LARGE
    assert layout.cut_product(2048, 32, 512, float32) == (NARROW._replace(groups=4), 4, 128)
    assert layout.cut_weight_gradient(2048, 512, 784, float32) == (SMALL._replace(groups=4), 5, 416)
    # a thread's sum is no longer than 1024
    assert layout.cut_product(10**6, 32, 4096, float32) == (NARROW, 4, 1024)
