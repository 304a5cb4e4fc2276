"""Launches that are repeated with other arrays are those that a call makes itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the CUDA kernels, is not installed")

from mcelbo_kernels.cuda import DeviceArray, Given, Place, record, seam, value_and_gradients
from mcelbo_kernels.cuda.recording import BOUNDARY, Recording
from mcelbo_kernels.problem import Activation, Draw, Layer, Need, Problem

REAL = np.dtype(np.float32)


class Log:
    """A device that only notes what is launched: names, blocks, and for each argument its type and its slot."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, tuple[int, int], list[tuple[Any, int]]]] = []
        self.arrays = 0

    def array(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Return an array at an address of its own."""
        self.arrays += 1
        return DeviceArray(self.arrays << 32, shape, np.dtype(dtype), None)

    def empty(self, count: int, dtype: Any) -> DeviceArray:
        """Return an array of so many numbers."""
        return self.array((count,), dtype)

    def upload(self, array: Any) -> DeviceArray:
        """Return an array that nothing else has."""
        return DeviceArray(7, array.shape, array.dtype, None)

    def launch(self, kernel: seam.Kernel, blocks: tuple[int, int], *arguments: Any) -> None:
        """Note a launch."""
        kinds = list(seam.flat(kernel.signature))
        slots = [seam.slot_of(kind, value) for kind, value in zip(kinds, seam.flat(arguments), strict=True)]
        self.launches.append((kernel.name, blocks, list(zip(kinds, slots, strict=True))))


OFFSETS = 3, 4


def problem_of(
    array: Any, offsets: tuple[int, ...], widths: tuple[int, ...], output: str, batch: int, sampler: str, weights: int
) -> Problem:
    """Return a problem of arrays that `array` makes."""
    activations = [Activation("leaky_relu", 0.1)] * (len(widths) - 2) + [Activation(output)]
    layers = tuple(
        Layer(array((o, i), REAL), array((o,), REAL), activation)
        for (i, o), activation in zip(pairwise(widths), activations, strict=True)
    )
    shapes = (batch, widths[-1]), (batch, widths[0]), (batch, widths[0])
    weight = array((weights, widths[-1]), REAL) if weights else None
    return Problem(*(array(shape, REAL) for shape in shapes), layers, Draw(64, 0, sampler, *offsets), weight)


def arrays_of(problem: Problem) -> list[Any]:
    """Return all that a problem holds."""
    layers = [each for layer in problem.layers for each in (layer.weight, layer.bias)]
    return [problem.x, problem.mu, problem.logvar, problem.weight, *layers]


def repeated(recording: Recording, inputs: list[int]) -> list[tuple[str, tuple[int, int], list[tuple[Any, int]]]]:
    """Return the launches with inputs at these addresses, what a call makes beyond them, and the offsets."""
    results = [(1000 + i) << 32 for i in range(len(recording.results) - recording.results.count(None))]
    slots = recording.constants + np.array([0, *inputs, 999 << 32, *results, *OFFSETS], np.int64)[recording.bases]
    found = []
    for kernel, blocks, first in recording.launches:
        kinds = list(seam.flat(kernel.signature))
        found.append((kernel.name, blocks, list(zip(kinds, map(int, slots[first : first + len(kinds)]), strict=True))))
    return found


CASES = {
    "thin": ((2, 70), "sigmoid", 3, "iid", 0),
    "deep": ((3, 9, 17, 70), "sigmoid", 3, "antithetic", 1),
    "sobol, weights of each datum": ((12, 70), "softplus", 5, "sobol", 5),
    "quadratic form": ((2, 8, 300), "identity", 3000, "iid", 1),
    "chunks": ((40, 784), "sigmoid", 700, "iid", 0),
}


@pytest.mark.parametrize("name", CASES)
def test_repeated_launches_are_a_calls_own(name: str) -> None:
    log, case = Log(), CASES[name]
    problem, seed = problem_of(log.array, OFFSETS, *case), log.array((1,), np.int64)
    thin = len(problem.layers) == 1 and problem.mu.shape[1] < 9
    need = Need(not thin, problem.weight is not None and not thin, True, True, ((True, True),) * len(problem.layers))
    moments, gradients = value_and_gradients(problem, need, seed, log)
    own = [*moments, gradients.mu, gradients.layers[-1][0]]

    offsets = Given(0), Given(0)
    stand_in = problem_of(Place, offsets, *case)
    inputs, place = [*arrays_of(stand_in), None], Place((1,), np.dtype(np.int64))

    def call(target: Any) -> list[Any]:
        moments, gradients = value_and_gradients(stand_in, need, place, target)
        return [*moments, gradients.mu, None, gradients.layers[-1][0]]

    recording = record(call, [*inputs, place], [()] * 5, Log(), offsets)
    assert recording is not None
    addresses = [array.address for array in arrays_of(problem) if array is not None] + [seed.address]
    again = repeated(recording, addresses)
    assert [launch[:2] for launch in again] == [launch[:2] for launch in log.launches]
    # where a call's own arrays lie among the repeated call's
    places = {address: address for address in (0, 7, *addresses)}
    for (_, _, ours), (_, _, theirs) in zip(again, log.launches, strict=True):
        for (kind, slot), (other_kind, other) in zip(ours, theirs, strict=True):
            assert kind == other_kind
            assert slot == (other if kind in seam.FORMATS else places.setdefault(other, slot))
    assert len(set(places.values())) == len(places)
    assert [places[array.address] >> 32 for array in own] == [1000, 1001, 1002, 1003]


def test_scratch_memory_is_shared_out() -> None:
    kernel = seam.Kernel("any", lambda *_: None, (seam.pointer(seam.float32),) * 5, 32, 1)

    def call(target: Any) -> list[Any]:
        made = [target.empty(count, dtype) for count, dtype in ((3, REAL), (0, REAL), (100, np.float64), (5, REAL))]
        target.launch(kernel, (1, 1), None, *made)
        return [None, made[2]]

    recording = record(call, [None], [(), (5, 20)], Log())
    assert recording is not None
    assert recording.constants.tolist() == [0, 0, BOUNDARY, 0, BOUNDARY]
    # nothing, the scratch memory, the result
    assert recording.bases.tolist() == [0, 1, 1, 2, 1]
    assert recording.size == 2 * BOUNDARY
    assert [place and (place.shape, place.dtype) for place in recording.results] == [None, ((5, 20), np.float64)]


def test_a_call_of_too_many_launches_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = seam.Kernel("any", lambda *_: None, (seam.int64,), 32, 1)

    def call(target: Any) -> list[Any]:
        for number in range(3):
            target.launch(kernel, (1, 1), number)
        return []

    monkeypatch.setattr("mcelbo_kernels.cuda.recording.MOST_LAUNCHES", 3)
    assert record(call, [], [], Log()) is not None
    monkeypatch.setattr("mcelbo_kernels.cuda.recording.MOST_LAUNCHES", 2)
    assert record(call, [], [], Log()) is None


def test_a_number_that_is_given_is_known_by_its_identity() -> None:
    kernel = seam.Kernel("any", lambda *_: None, (seam.int64,) * 3, 32, 1)
    numbers = Given(5), Given(5)

    def call(target: Any) -> list[Any]:
        target.launch(kernel, (1, 1), numbers[1], 5, numbers[0])
        return []

    recording = record(call, [None], [], Log(), numbers)
    assert recording is not None
    # nothing, the scratch memory, the numbers
    assert recording.bases.tolist() == [3, 0, 2]
    assert recording.constants.tolist() == [0, 5, 0]
