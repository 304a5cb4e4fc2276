"""Memory between calls: kernels write where they may, read what was written, and a block is lent to one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcelbo_kernels.cpu import gram, layout, memory, plan, schedule
from mcelbo_kernels.cpu.memory import CACHE_LINE, Workspace
from mcelbo_kernels.problem import Need, Problem
from tests.strategies import upstreams
from tests.test_gram import quadratic, well_fitted
from tests.test_grid import assert_same, deep_problem, one_layer, random_problem, stacks
from tests.test_thin import WIDE, weighted_problem
from tests.torch_twin import named

Array = Any
GUARD = 4096  # bytes on both sides of an array: more than any vector or tile
PATTERNS = (0xFF, 0x00)  # floats of such bytes are NaN, and zero


class Fence:
    """Makes arrays that are filled with one byte and surrounded by it; `check` finds out who wrote beside them."""

    def __init__(self, pattern: int) -> None:
        self.pattern = pattern
        self.blocks: list[tuple[Array, int, tuple[int, ...]]] = []

    def array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        block = memory.aligned_block(size + 2 * GUARD)
        block.fill(self.pattern)
        self.blocks.append((block, size, shape))
        return np.ndarray(shape, dtype, block, GUARD)

    def copy(self, array: Array | None) -> Array | None:
        """The array's numbers behind fences, so that whoever reads beside them finds the pattern."""
        if array is None:
            return None
        result = self.array(array.shape, array.dtype)
        result[...] = array
        return result

    def problem(self, problem: Problem) -> Problem:
        layers = tuple(
            replace(layer, weight=self.copy(layer.weight), bias=self.copy(layer.bias)) for layer in problem.layers
        )
        fields = {name: self.copy(getattr(problem, name)) for name in ("x", "mu", "logvar", "weight")}
        return replace(problem, layers=layers, draw=replace(problem.draw, eps=self.copy(problem.draw.eps)), **fields)

    def check(self) -> None:
        for block, size, shape in self.blocks:
            sides = np.concatenate([block[:GUARD], block[GUARD + size :]])
            assert (sides == self.pattern).all(), f"beside an array of shape {shape}"


def guarded(call: Callable[[Problem], Any], problem: Problem, pattern: int) -> Any:
    """Return call(problem), whose inputs, buffers and results all lie behind fences of their own."""
    fence = Fence(pattern)

    class Guarded(Workspace):
        def take(self, shape: tuple[int, ...], dtype: Any = memory.FLOAT64) -> Array:
            return fence.array(shape, dtype)

    def layer_gradients(problem: Problem, need: Need) -> tuple[tuple[Array | None, Array | None], ...]:
        return tuple(
            tuple(
                fence.array(array.shape, array.dtype) if wanted else None
                for array, wanted in zip((layer.weight, layer.bias), pair, strict=True)
            )
            for layer, pair in zip(problem.layers, need.layers, strict=True)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_left", {})
        patch.setattr(plan, "Workspace", Guarded)
        patch.setattr(schedule, "layer_gradients", layer_gradients)
        patch.setattr(schedule, "WORTH_A_HELPER", 0)
        found = call(fence.problem(problem))
    assert len(fence.blocks) > 10
    fence.check()
    return found


def assert_confined(call: Callable[[Problem], Any], problem: Problem) -> None:
    """What lies beside an array is neither written nor missed, and what was in a buffer before changes nothing."""
    of_nan, of_zeros = (guarded(call, problem, pattern) for pattern in PATTERNS)
    for one, other in zip(flat(of_nan), flat(of_zeros), strict=True):
        np.testing.assert_array_equal(one, other)
        assert not np.isnan(one).any()
    # of copies too, because NumPy's own sums depend on strides
    for one, other in zip(flat(of_nan), flat(call(Fence(0).problem(problem))), strict=True):
        np.testing.assert_array_equal(one, other)


def flat(found: Any) -> list[Array]:
    """All arrays of errors, gradients, or moments and gradients."""
    if isinstance(found, np.ndarray):
        return [found]
    if hasattr(found, "layers"):
        return list(named(found).values())
    return [array for part in found for array in flat(part)]


def errors_between_fences(problem: Problem, threads: int) -> Array:
    """What `schedule.errors` does, but for where the result lies."""
    fence = Fence(0xFF)
    result = fence.array((len(problem.x), problem.draw.num_samples), problem.x.dtype)
    schedule.run(problem, Need.nothing(problem), threads, errors=result)
    fence.check()
    np.testing.assert_array_equal(result, schedule.errors(problem, threads))
    return result


def needs(problem: Problem) -> st.SearchStrategy[Need]:
    """Any choice of gradients."""
    flag = st.booleans()
    pairs = st.tuples(*[st.tuples(flag, flag)] * len(problem.layers))
    weight = flag if problem.weight is not None else st.just(False)
    # without x and weights a layer of few latents takes another pass, which has tests of its own here
    return st.builds(Need, st.just(True), weight, flag, flag, pairs)


@given(data=st.data(), problem=one_layer | stacks, threads=st.integers(1, 3))
def test_the_grid_keeps_to_its_arrays(data: st.DataObject, problem: Problem, threads: int) -> None:
    need, kind = data.draw(needs(problem)), data.draw(st.sampled_from(["value", "errors", "product"]))
    if kind == "product":
        upstream = data.draw(upstreams(problem))
        assert_confined(lambda problem: schedule.gradients(problem, upstream, need, threads), problem)
    elif kind == "value":
        assert_confined(lambda problem: schedule.value_and_gradients(problem, need, threads), problem)
    else:
        assert_confined(lambda problem: errors_between_fences(problem, threads), problem)


@pytest.mark.parametrize("weight", [None, "shared", "per datum"])
def test_deep_decoders_keep_to_their_arrays(weight: str | None) -> None:
    shape = (1 if weight == "shared" else 6, 70)
    of_pixels = None if weight is None else np.linspace(0, 2, math.prod(shape), dtype=np.float32).reshape(shape)
    problem = deep_problem(n=310, weight=of_pixels)
    for lowest in range(-1, 4):
        for x in (False, True):
            layers = tuple((index >= lowest, index > lowest) for index in range(4))
            need = Need(x, x and weight is not None, lowest < 0, lowest < 0, layers)
            assert_confined(lambda problem, need=need: schedule.value_and_gradients(problem, need, 2), problem)


@given(
    latent=st.sampled_from([1, 3]),
    batch=st.integers(1, 4),
    pixels=st.sampled_from([1, 16, 31, 32, 33, 70]),
    n=st.integers(1, 9) | st.sampled_from([67, 300, 1500]),
    threads=st.integers(1, 3),
    flags=st.tuples(*[st.booleans()] * 4).filter(any),
    upstream=st.booleans(),
)
def test_the_pass_over_few_latents_keeps_to_its_arrays(
    latent: int, batch: int, pixels: int, n: int, threads: int, flags: tuple[bool, ...], upstream: bool
) -> None:
    problem = weighted_problem(batch, latent, pixels, n)
    mu, logvar, weight, bias = flags
    need = Need(False, False, mu, logvar, ((weight, bias),))
    g = np.random.default_rng(n).standard_normal((batch, n)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "host_shape", lambda real: WIDE)
        assert layout.is_thin(layout.kind_of(problem, need, WIDE))
        if upstream:
            assert_confined(lambda problem: schedule.gradients(problem, g, need, threads), problem)
        else:
            assert_confined(lambda problem: schedule.value_and_gradients(problem, need, threads), problem)


@given(data=st.data(), problem=quadratic, threads=st.integers(1, 3))
def test_the_quadratic_form_keeps_to_its_arrays(data: st.DataObject, problem: Problem, threads: int) -> None:
    need = data.draw(needs(problem))
    assert_confined(lambda problem: gram.value_and_gradients(problem, need, threads), problem)


# --- from one call to the next ---


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """What calls leave behind; nothing yet."""
    found: dict[Any, Any] = {}
    monkeypatch.setattr(memory, "_left", found)
    return found


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def arrays_of(buffers: Any) -> list[Array]:
    """All arrays of a plan."""
    if isinstance(buffers, np.ndarray):
        return [buffers]
    return [array for part in buffers for array in arrays_of(part)] if isinstance(buffers, tuple) else []


SIZES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 40), max_size=3).map(tuple),
        st.sampled_from([np.dtype(name) for name in ("f4", "f8", "i8")]),
    ),
    max_size=6,
)


@given(sizes=SIZES)
def test_arrays_begin_on_cache_lines_and_never_overlap(sizes: list[tuple[tuple[int, ...], Any]]) -> None:
    workspace = Workspace()
    arrays = [workspace.take(shape, dtype) for shape, dtype in sizes]
    for array, (shape, dtype) in zip(arrays, sizes, strict=True):
        assert (array.shape, array.dtype) == (shape, dtype)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not array.nbytes or not address(array) % CACHE_LINE
    spans = sorted((address(array), array.nbytes) for array in arrays if array.nbytes)
    assert all(one + size <= other for (one, size), (other, _) in pairwise(spans))
    assert workspace.nbytes == sum(array.nbytes for array in arrays)


def test_zeros_are_zeros_whatever_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "aligned_block", lambda size: np.full(size, 0xFF, np.uint8))
    assert np.isnan(Workspace().take((5, 7))).all()
    assert not Workspace().zeros((5, 7)).any()


def test_a_workspace_gives_its_arrays_again_in_their_order() -> None:
    workspace = Workspace()
    first = [workspace.take((3,)), workspace.zeros((2, 2))]
    size = workspace.nbytes
    workspace.restart()
    again = [workspace.take((3,)), workspace.zeros((2, 2))]
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert workspace.nbytes == size
    assert workspace.take((5,)) is not first[0]
    assert workspace.nbytes == size + 40


class Block(NamedTuple):
    """Buffers of a size."""

    nbytes: int
    number: int = 0


def never() -> Block:
    raise AssertionError("there was something to take")


def test_what_is_left_goes_to_one_call_of_its_kind(left: dict[Any, Any]) -> None:
    memory.leave("one", Block(8))
    assert memory.take("another", lambda: Block(8, 1)) == Block(8, 1)
    assert memory.take("one", never) == Block(8)
    assert memory.take("one", lambda: Block(8, 2)) == Block(8, 2)


def test_what_has_waited_longest_is_dropped_first(left: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KINDS_KEPT", 3)
    monkeypatch.setattr(memory, "BYTES_KEPT", 100)
    for kind in "abcd":
        memory.leave(kind, Block(10))
    assert list(left) == ["b", "c", "d"]
    memory.leave("b", memory.take("b", never))
    assert list(left) == ["c", "d", "b"]
    memory.leave("c", Block(10, 1))  # of a call at the same time as another of its kind
    assert list(left) == ["d", "b", "c"]
    memory.leave("e", Block(90))
    assert list(left) == ["c", "e"]
    memory.leave("f", Block(101))
    assert list(left) == ["c", "e"]
    memory.leave("f", Block(100))
    assert list(left) == ["f"]


def test_a_plan_counts_its_bytes(left: dict[Any, Any]) -> None:
    problem = deep_problem(weight=np.ones((1, 70), np.float32))
    schedule.value_and_gradients(problem, Need.everything(problem))
    (plan_,) = left.values()
    without_tables = sum(array.nbytes for array in arrays_of(plan_)) - plan_.layout.layers.nbytes
    assert plan_.nbytes == without_tables - plan_.parameters.nbytes


def spoiled(problem: Problem) -> Problem:
    """A problem of the same kind of which nothing is a number."""
    return replace(problem, **{name: np.full_like(getattr(problem, name), np.nan) for name in ("x", "mu", "logvar")})


@pytest.mark.parametrize(
    "problem",
    [random_problem(3, 5, 33, 67), weighted_problem(3, 2, 41, 67), deep_problem()],
    ids=["one layer", "few latents", "deep"],
)
def test_nothing_of_a_call_reaches_the_next_of_its_kind(problem: Problem, left: dict[Any, Any]) -> None:
    n = problem.draw.num_samples
    upstream = np.random.default_rng(0).standard_normal((len(problem.x), n)).astype(np.float32)
    every = Need.everything(problem)
    few = every._replace(x=False, weight=False)
    calls: tuple[Callable[[Problem, Array], Any], ...] = (
        lambda problem, upstream: schedule.value_and_gradients(problem, every),
        lambda problem, upstream: schedule.value_and_gradients(problem, few),
        lambda problem, upstream: schedule.gradients(problem, upstream, few),
        lambda problem, upstream: schedule.errors(problem),
    )
    for call in calls:
        left.clear()
        fresh = flat(call(problem, upstream))
        call(spoiled(problem), np.full_like(upstream, np.nan))
        assert len(left) == 1
        for one, other in zip(fresh, flat(call(problem, upstream)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_quadratic_form_meets_nothing_of_the_last(left: dict[Any, Any]) -> None:
    for hidden in (None, 7):
        left.clear()
        problem = well_fitted(np.float32, hidden)
        need = Need.everything(problem)
        fresh = flat(gram.value_and_gradients(problem, need))
        gram.value_and_gradients(spoiled(problem), need)
        assert len(left) > 1  # of the quadratic form, its pass and its products
        for one, other in zip(fresh, flat(gram.value_and_gradients(problem, need)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_call_that_is_interrupted_leaves_nothing(left: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    problem = random_problem(3, 5, 33, 67)
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "work", interrupted)
        with pytest.raises(KeyboardInterrupt):
            schedule.errors(problem)
    assert not left
    schedule.errors(problem)
    assert len(left) == 1


def test_results_at_the_same_time_are_those_one_after_another() -> None:
    sizes = ((3, 67), (5, 300), (2, 9))
    cases = [random_problem(batch, 5, 33, n) for batch, n in sizes]
    alone = [schedule.value_and_gradients(problem, Need.everything(problem)) for problem in cases]

    def often(number: int) -> None:
        for _ in range(20):
            problem = cases[number % len(cases)]
            moments, gradients = schedule.value_and_gradients(problem, Need.everything(problem))
            np.testing.assert_array_equal(moments, alone[number % len(cases)][0])
            assert_same(gradients, alone[number % len(cases)][1])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(often, range(6)))


def test_results_outlive_the_memory_that_they_were_computed_in(left: dict[Any, Any]) -> None:
    problem = random_problem(3, 5, 33, 67)
    found = schedule.value_and_gradients(problem, Need.everything(problem))
    kept = [array.copy() for array in flat(found)]
    for buffer in arrays_of(next(iter(left.values()))):
        assert not any(np.shares_memory(array, buffer) for array in flat(found))
        buffer.fill(0)
    for array, copy in zip(flat(found), kept, strict=True):
        np.testing.assert_array_equal(array, copy)
