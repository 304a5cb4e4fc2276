"""Sums over data of many rows, which are cut into parts: the kernels' PTX, interpreted, against the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mcelbo_kernels import reference
from mcelbo_kernels.problem import Draw, Need, Problem
from tests.test_grid import assert_gradients

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the CUDA kernels, is not installed")

from mcelbo_kernels.cuda import layout, schedule
from mcelbo_kernels.cuda.plan import Plan, plan_of
from mcelbo_kernels.cuda.rows import DatumSum
from tests import cuda_targets as cuda
from tests.test_cuda_gram import Noting
from tests.test_cuda_schedule import assert_right, stack

Array = Any
POSTERIOR = Need(False, False, True, True, ((False, False),))


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Cut whatever can be cut, in chunks of a length if there is one."""

    def cut(length: int | None = None) -> None:
        monkeypatch.setattr(layout, "WAITS_OF_A_LAUNCH", -1)
        if length is not None:
            monkeypatch.setattr(layout, "BYTES_OF_A_CHUNK", 0)
            monkeypatch.setattr(layout, "FEWEST_ROWS", length)
        plan_of.cache_clear()

    yield cut
    plan_of.cache_clear()


def plan_for(problem: Problem, need: Need, upstream: bool = False) -> Plan:
    return plan_of(layout.kind_of(problem, need, upstream, False))


def sums_of(plan: Plan) -> dict[str, DatumSum]:
    return {"moments": plan.moments, "latents": plan.latents, "x": plan.x, "weight": plan.weight}


# groups of threads take 1,024 rows a turn of errors, 256 of three latents and 32 of pixels
@pytest.mark.parametrize(("batch", "n", "parts"), [(2, 300, (1, 2, 10, 19)), (1, 1099, (2, 5, 35, 35))])
def test_data_in_parts(batch: int, n: int, parts: tuple[int, ...], in_parts: Callable[..., None]) -> None:
    in_parts()
    problem = stack((3, 5), batch, Draw(n, 5, sample_offset=3), weight=np.linspace(0, 2, 5, dtype=np.float32)[None])
    found = sums_of(plan_for(problem, Need.everything(problem)))
    assert tuple(each.parts for each in found.values()) == parts
    assert_right(problem)


def test_chunks_begin_and_end_within_a_datum_in_parts(in_parts: Callable[..., None]) -> None:
    in_parts(1536)
    problem = stack((3, 5), 2, Draw(1501, 5), weight=np.linspace(0, 2, 5, dtype=np.float32)[None])
    plan = plan_for(problem, Need.everything(problem))
    assert (plan.length, problem.draw.num_samples) == (1536, 1501)
    assert all(each.parts > 1 for each in sums_of(plan).values())
    assert_right(problem)


def test_many_data_in_parts_in_double_precision(in_parts: Callable[..., None]) -> None:
    in_parts()
    assert_right(stack((9, 17, 40), 5, Draw(70, 5, "sobol", datum_offset=3, sample_offset=2), np.float64))


@pytest.mark.parametrize("shared", [False, True])
def test_upstream_gradients_of_data_in_parts(shared: bool, in_parts: Callable[..., None]) -> None:
    in_parts()
    eps = np.random.default_rng(1).standard_normal((2, 301, 3)).astype(np.float32)
    weight = np.linspace(0, 2, 5 * (1 if shared else 2), dtype=np.float32).reshape(-1, 5)
    problem = stack((3, 5), 2, Draw(301, eps=eps), weight=weight)
    upstream = np.linspace(-1, 1, 602, dtype=np.float32).reshape(2, 301)
    need = Need.everything(problem)
    plan = plan_for(problem, need, upstream=True)
    assert min(plan.latents.parts, plan.x.parts, plan.weight.parts) > 1
    assert_gradients(cuda.gradients(problem, upstream, need), problem, upstream)


def test_a_bad_number_spoils_its_datum_alone(in_parts: Callable[..., None]) -> None:
    in_parts()
    eps = np.random.default_rng(1).standard_normal((3, 290, 3)).astype(np.float32)
    eps[1, 280, 2] = np.nan
    problem = stack((3, 5), 3, Draw(290, 5))
    spoilt = Problem(problem.x, problem.mu, problem.logvar, problem.layers, Draw(290, eps=eps))
    moments, gradients = cuda.value_and_gradients(spoilt, POSTERIOR)
    np.testing.assert_array_equal(np.isfinite(moments.mean), [True, False, True])
    for found in (gradients.mu, gradients.logvar):
        np.testing.assert_array_equal(np.isfinite(found).all(1), [True, False, True])


def names_of(problem: Problem) -> list[str]:
    """Return the kernels that the value and the posterior's gradients launch."""
    target = Noting()
    schedule.Call(cuda.on_device(problem), POSTERIOR, cuda.seed_of(problem), target).run()
    return target.names


def test_launches(in_parts: Callable[..., None]) -> None:
    problem = stack((2, 5), 2, Draw(600, 5))
    assert names_of(problem) == ["thin", "moments", "latent_gradient"]
    whole = cuda.value_and_gradients(problem, POSTERIOR)
    in_parts()
    assert names_of(problem) == ["thin", "moments", "latent_gradient_in_parts", "latent_gradient_of_parts"]
    moments, gradients = cuda.value_and_gradients(problem, POSTERIOR)
    np.testing.assert_array_equal(moments, whole[0])
    for name in ("mu", "logvar"):
        np.testing.assert_allclose(getattr(gradients, name), getattr(whole[1], name), rtol=2e-7)
    exact = reference.value_and_gradients(problem, POSTERIOR)[1]
    np.testing.assert_allclose(gradients.mu, exact.mu, rtol=1e-4)


@pytest.mark.parametrize("blocks", [1, 3, 128, 1000])
@pytest.mark.parametrize("rows", [1, 31, 33, 1000, 10_000, 1 << 20])
@pytest.mark.parametrize("waits", [1, 5, 40])
def test_the_cut_of_a_datum(blocks: int, rows: int, waits: int) -> None:
    turn = 32
    parts, piece = layout.cut_datum(blocks, rows, turn, waits)
    assert (parts - 1) * piece < rows <= parts * piece
    if parts == 1:
        # no cut into enough blocks is worth another launch
        turns, most = -(-rows // turn), -(-layout.ENOUGH_BLOCKS // blocks)
        assert (turns - -(-turns // most)) * waits <= layout.WAITS_OF_A_LAUNCH
    else:
        assert piece % turn == 0
        assert blocks * (parts - 1) < layout.ENOUGH_BLOCKS
