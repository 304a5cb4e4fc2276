"""The CUDA kernels that calls can reach, as lists for the tests of their machine code.

All options together make some thousand kernels. `SPECIALISATIONS` has every choice of every option, and of their
combinations those that take registers. Of the last layer these are every output, for two tiles each by turns, with all
gradients, or those of the data without pixel weights, when registers hold a row of pixels; and every tile with the
gradients of a training step and of the data. Thin passes have the shape that leaves the fewest registers.
`REPRESENTATIVE` has one of each kernel for each tile and precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from mcelbo_kernels.cuda import backward, datum, decoded, layers, quadratic, samples, sums, thin
from mcelbo_kernels.cuda.datum import IN_PARTS, OF_PARTS, WHOLE
from mcelbo_kernels.cuda.layout import GROUPS
from mcelbo_kernels.cuda.noise import INJECTED, fill_noise
from mcelbo_kernels.cuda.seam import Kernel, float32, float64
from mcelbo_kernels.cuda.tile import LARGE, NARROW, NARROW_DOUBLE, SMALL, SMALL_DOUBLE, Tile
from mcelbo_kernels.numerics import cells
from mcelbo_kernels.problem import ACTIVATIONS, SAMPLERS

REALS = (float32, float64)
NAMES = {LARGE: "large", SMALL: "small", NARROW: "narrow", SMALL_DOUBLE: "small", NARROW_DOUBLE: "narrow"}
TILES = {
    tile._replace(groups=groups): name if groups == 1 else f"{name}-{groups}-groups"
    for tile, name in NAMES.items()
    for groups in GROUPS[tile]
}
DOUBLE = [tile for tile in TILES if tile._replace(groups=1) in (SMALL_DOUBLE, NARROW_DOUBLE)]
SMALLER = [tile for tile in TILES if tile._replace(groups=1) in (SMALL, NARROW)]
REAL_OF = {tile: float64 if tile in DOUBLE else float32 for tile in TILES}
TILED = list(REAL_OF.items())
SIGMOID = ("sigmoid", "squared_error")
OUTPUTS = [(name, cell) for cell, family in cells.BY_NAME.items() for name in family.outputs or ACTIVATIONS]
# gradient, weighted, by_data, by_weight: each of the last two is a gradient, by_weight that of the weights
FLAGS = [flags for flags in product((False, True), repeat=4) if flags[0] >= max(flags[2:]) and flags[1] >= flags[3]]
TRAINING, OF_DATA, ALL = (True, False, False, False), (True, False, True, False), FLAGS[-1]
LANES = (1, 2, 4, 8, 16, 32)
ADDING = ("centre_errors", "residuals", "layer_gradient", "pixel_weight_gradient")
SECOND_STAGE = ("datum.", "decoded.", "sums.", *[f"quadratic.{name}" for name in ADDING])
STAGES = (OF_PARTS, IN_PARTS, WHOLE)


class Case(NamedTuple):
    """A kernel that a call can reach: what tests call it, its precision, its tile if it has one, and how to make it."""

    name: str
    real: Any
    tile: Tile | None
    make: Callable[[], Kernel]

    @property
    def single(self) -> bool:
        """Whether it computes in single precision alone; the second stage adds up in double precision."""
        return bool(self.real == float32) and not self.name.startswith(SECOND_STAGE)


def _case(make: Callable[..., Kernel], *arguments: Any, real: Any, tile: Tile | None = None, **options: Any) -> Case:
    """Name a kernel after its options."""
    words = [
        word if value is True else str(value)
        for word, value in options.items()
        if value is not False and value not in (None, WHOLE)
    ]
    size = [] if tile is None else [TILES[tile]]
    function = f"{make.__module__.rpartition('.')[2]}.{make.__name__}"
    return Case("-".join((function, *size, str(real), *words)), real, tile, partial(make, *arguments))


def _layer(make: Callable[..., Kernel], spec: Any) -> Case:
    """Return the case of a layer's kernel."""
    return _case(make, spec, **spec._asdict())


def _by_turns(options: Sequence[Any]) -> Iterator[tuple[tuple[Tile, Any], Any]]:
    """Yield each option with the large tile, or one of double precision, and with a smaller one, all by turns."""
    for turn, option in enumerate(options):
        for tile in (DOUBLE[turn // 2 % len(DOUBLE)] if turn % 2 else LARGE, SMALLER[turn % len(SMALLER)]):
            yield (tile, REAL_OF[tile]), option


def _hidden() -> Iterator[Case]:
    for tile, real in TILED:
        yield _layer(layers.hidden, layers.Hidden(tile, real, "identity", False))
        for centred in (False, True):
            yield _layer(layers.hidden, layers.Hidden(tile, real, "relu", True, centred))
    for turn, name in enumerate(name for name in ACTIVATIONS if name != "relu"):
        yield _layer(layers.hidden, layers.Hidden(*TILED[turn % len(TILED)], name, True, turn % 2 == 0))


def _last() -> Iterator[Case]:
    others = [flags for flags in FLAGS if flags not in (TRAINING, OF_DATA, ALL)]
    for turn, (tiled, flags) in enumerate(product((TILED[0], TILED[2]), others)):
        yield _layer(layers.last, layers.Last(*tiled, *OUTPUTS[turn], *flags))
    for tiled, flags in product(TILED, (TRAINING, OF_DATA)):
        yield _layer(layers.last, layers.Last(*tiled, *SIGMOID, *flags))
    yield _layer(layers.last, layers.Last(*TILED[0], "identity", "squared_error", *TRAINING))
    for turn, (tiled, output) in enumerate(_by_turns(OUTPUTS)):
        yield _layer(layers.last, layers.Last(*tiled, *output, *(OF_DATA if turn % 4 == 3 else ALL)))


def _gradients() -> Iterator[Case]:
    for tiled, flag in product(TILED, (False, True)):
        yield _layer(backward.backward, backward.Backward(*tiled, flag))
        yield _layer(backward.weight_gradient, backward.WeightGradient(*tiled, flag))


def _thin() -> Iterator[Case]:
    samplers = (INJECTED, *SAMPLERS)
    # of a training step on images
    for latent, output in product(range(1, thin.MOST_LATENTS + 1), (SIGMOID, ("identity", "squared_error"))):
        spec = thin.Thin(float32, *output, "iid", True, False, False, latent, *thin.shape_for(784, latent))
        yield _case(thin.thin, spec, **spec._asdict())
    turns = list(enumerate(product(range(1, thin.MOST_LATENTS + 1), REALS)))
    # gradient, weighted, upstream, which there is for gradients alone
    combinations = [flags for flags in product((False, True), repeat=3) if flags[0] >= flags[2]]
    for flags in combinations:
        for turn, (latent, real) in turns if all(flags) else turns[sum(flags) : 8 : 3]:
            output, sampler = OUTPUTS[turn % len(OUTPUTS)], samplers[turn // 2 % 4]
            spec = thin.Thin(real, *output, sampler, *flags, latent, thin.most_columns(latent), 128)
            yield _case(thin.thin, spec, **spec._asdict())


def _quadratic() -> Iterator[Case]:
    for slope in (False, True):
        yield _layer(quadratic.form, quadratic.Form(LARGE, float32, False, slope))
    for tiled, slope in product(TILED, (False, True)):
        yield _layer(quadratic.form, quadratic.Form(*tiled, True, slope))
    yield _layer(backward.weight_gradient, backward.WeightGradient(LARGE, float32, True, True))
    for tile, real in TILED:
        yield _layer(backward.backward, backward.Backward(tile, real, False, True))
        yield _layer(backward.weight_gradient, backward.WeightGradient(tile, real, False, True))
        if real == float64:
            yield _layer(backward.backward, backward.Backward(tile, real, False, True, float32))


def _samples() -> Iterator[Case]:
    for lanes, stage in product(LANES, STAGES):
        options = {"sampler": "iid", "lanes": lanes, "stage": stage}
        yield _case(datum.latent_gradient, "iid", float32, lanes, False, stage, real=float32, **options)
    for turn, (sampler, real) in enumerate(product((INJECTED, *SAMPLERS), REALS)):
        for centred in (False, True):
            yield _case(samples.draw, sampler, real, centred, real=real, sampler=sampler, centred=centred)
        lanes = LANES[turn % len(LANES)]
        for stage, upstream in product(STAGES, (False, True)):
            options = {"sampler": sampler, "lanes": lanes, "upstream": upstream, "stage": stage}
            yield _case(datum.latent_gradient, sampler, real, lanes, upstream, stage, real=real, **options)


def _sums() -> Iterator[Case]:
    for real in REALS:
        yield _case(sums.finish_errors, real, real=real)
        yield _case(sums.activation_gradient, real, real=real)
        for flag in (False, True):
            for stage in STAGES:
                yield _case(datum.moments, real, flag, stage, real=real, beside=flag, stage=stage)
            for groups in (1, 8, 32):
                yield _case(sums.parameter_gradient, real, groups, flag, real=real, groups=groups, symmetric=flag)
        for stage, upstream in product(STAGES, (False, True)):
            yield _case(datum.pixel_gradient, real, upstream, stage, real=real, upstream=upstream, stage=stage)


def _form() -> Iterator[Case]:
    for real, weighted in product(REALS, (False, True)):
        for flag in (False, True):
            options = {"weighted": weighted, "by_weight": flag}
            yield _case(quadratic.centre_errors, real, weighted, flag, real=real, **options)
        for needed in product((False, True), repeat=3):
            if any(needed) and weighted >= needed[1]:
                yield _layer(quadratic.residuals, quadratic.Residuals(real, weighted, *needed))
        yield _case(quadratic.layer_gradient, real, weighted, real=real, weighted=weighted)
    yield from (_case(quadratic.pixel_weight_gradient, real, real=real) for real in REALS)


def _decoded() -> Iterator[Case]:
    for real, cell in product(REALS, cells.BY_NAME):
        for flags in product((False, True), repeat=2):
            yield _layer(decoded.errors, decoded.Errors(real, cell, *flags))
        # weighted, by_data, by_weight
        for needed in ((False, False, True), (False, True, False), (True, True, False), (True, True, True)):
            yield _layer(decoded.gradients, decoded.Gradients(real, cell, *needed))
    yield _case(decoded.add_parts, real=float64)


def _noise() -> Iterator[Case]:
    for sampler, real in product(SAMPLERS, REALS):
        yield _case(fill_noise, sampler, real, real=real, sampler=sampler)


_every = [
    *(*_quadratic(), *_form(), *_hidden(), *_last(), *_gradients(), *_thin()),
    *(*_samples(), *_noise(), *_sums(), *_decoded()),
]
# of a name that comes twice the last
SPECIALISATIONS = list({case.name: case for case in reversed(_every)}.values())[::-1]
# what does most comes last
REPRESENTATIVE = list({(case.make.func, case.real, case.tile): case for case in SPECIALISATIONS}.values())
