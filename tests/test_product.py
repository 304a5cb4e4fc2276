"""Products of matrices by the register tile: against float64 of any strides, and in the memory that is theirs."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcelbo_kernels.cpu import crew, product
from mcelbo_kernels.cpu.layers import COLUMNS_OF_A_SUM
from mcelbo_kernels.cpu.product import multiply

Array = Any
# on both sides of a vector, a tile, a panel and a task
SIZES = st.sampled_from([1, 2, 5, 12, 13, 16, 31, 32, 33, 70, 200])
TERMS = st.integers(0, 40) | st.sampled_from([COLUMNS_OF_A_SUM, COLUMNS_OF_A_SUM + 1, 2 * COLUMNS_OF_A_SUM + 9])


@pytest.fixture(autouse=True)
def _always_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "WORTH_A_KERNEL", 1)
    monkeypatch.setattr(product, "WORTH_A_HELPER", 1)


@st.composite
def matrices(draw: st.DrawFn, rows: int, columns: int, real: Any) -> Array:
    """Numbers of order one that lie by rows, by columns, apart or in reverse."""
    kind = draw(st.sampled_from(["rows", "columns", "apart", "reverse"]))
    size = {"columns": (columns, rows), "apart": (2 * rows, 3 * columns)}.get(kind, (rows, columns))
    array = np.random.default_rng(rows + 1000 * columns).standard_normal(size).astype(real)
    return {"columns": array.T, "apart": array[::2, 1::3], "reverse": array[::-1, ::-1]}.get(kind, array)


@given(data=st.data(), rows=SIZES, terms=TERMS, columns=SIZES, real=st.sampled_from([np.float32, np.float64]))
def test_any_sizes_and_strides(data: st.DataObject, rows: int, terms: int, columns: int, real: Any) -> None:
    a, b = data.draw(matrices(rows, terms, real)), data.draw(matrices(terms, columns, real))
    exact, size = a.astype(float) @ b.astype(float), abs(a).astype(float) @ abs(b).astype(float)
    # a product of two halves of rounding errors of `terms` steps, see Higham, "Accuracy and stability", section 3.1
    allowed = (terms + 2) * np.finfo(real).eps * size
    found = multiply(a, b, data.draw(st.integers(1, 3)))
    assert found.dtype == real
    assert (abs(found - exact) <= allowed).all()
    # between other numbers, and added to some
    block = np.full((rows + 2, columns), np.nan, real)
    block[1:-1] = 1
    assert multiply(a, b, out=block[1:-1], add=True).base is block
    assert (abs(block[1:-1].astype(float) - 1 - exact) <= allowed + np.finfo(real).eps * (1 + size)).all()
    multiply(a, b, out=block[1:-1])
    np.testing.assert_array_equal(block[1:-1], found)
    assert np.isnan(block[[0, -1]]).all()


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_the_same_bits_for_any_number_of_threads(real: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(size).astype(real) for size in ((300, 1100), (1100, 150)))
    alone = multiply(a, b)
    for threads in (2, 3, 2, 3):
        np.testing.assert_array_equal(multiply(a, b, threads), alone)


@pytest.fixture
def _pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """No team helps, and no kernel is known to be compiled: as in the first call of a process without torch."""
    monkeypatch.setattr(crew, "_team", None)
    monkeypatch.setattr(crew, "_compiled", set())


@pytest.mark.usefixtures("_pool")
def test_the_first_call_on_the_pool_adds_once() -> None:
    c = np.ones((64, 64))
    for times in (1, 2):
        multiply(np.ones((64, 5)), np.ones((5, 64)), 3, out=c, add=True)
        np.testing.assert_array_equal(c, np.full((64, 64), 1.0 + 5 * times))


def test_what_is_not_finite_stays_in_its_row_and_column() -> None:
    a, b = np.ones((40, 9), np.float32), np.ones((9, 40), np.float32)
    a[39, 8], b[0, 35] = np.inf, np.nan
    found = multiply(a, b)
    clean = np.ones((40, 40), bool)
    clean[39], clean[:, 35] = False, False
    assert (found[clean] == 9).all()
    assert np.isnan(found[:, 35]).all()
    assert np.isposinf(found[39, np.arange(40) != 35]).all()


def test_beside_one_large_term_only_those_of_its_own_sum_are_lost() -> None:
    terms = 8 * COLUMNS_OF_A_SUM
    a = np.ones((1, terms), np.float32)
    a[0, 0] = 2**26
    found = multiply(a, np.ones((terms, 1), np.float32))[0, 0]
    assert abs(found - (2**26 + terms - 1)) <= COLUMNS_OF_A_SUM + np.spacing(found)


@pytest.mark.parametrize("worth", [1, 1 << 62])
def test_whether_it_is_worth_a_kernel_changes_roundings_alone(worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "WORTH_A_KERNEL", worth)
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(size) for size in ((3, 5), (5, 4), (3, 4)))
    np.testing.assert_allclose(multiply(a, b), a @ b, rtol=1e-13, atol=1e-15)
    expected = c + a @ b
    np.testing.assert_allclose(multiply(a, b, out=c, add=True), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("a", "b"),
    [(np.ones((2, 3)), np.ones((2, 3))), (np.ones((2, 3)), np.ones((3, 2), np.float32))],
    ids=["shapes", "dtypes"],
)
def test_matrices_that_do_not_go_together_are_refused(a: Array, b: Array) -> None:
    with pytest.raises(ValueError, match=r"a is float64 \(2, 3\) and b .*: expected"):
        multiply(a, b)


def test_the_examples_of_the_docstrings() -> None:
    outcome = doctest.testmod(product)
    assert outcome.attempted
    assert not outcome.failed
