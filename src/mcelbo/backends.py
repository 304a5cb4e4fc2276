"""What the fused ops compute, on the CPU and on a GPU: tensors to a `Problem` and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mcelbo.arguments import as_array
from mcelbo.gpu import target_on
from mcelbo.sobol import directions
from mcelbo_kernels import cpu
from mcelbo_kernels.problem import Activation, Draw, Gradients, Layer, Need, Problem, check_draw

if TYPE_CHECKING:
    from mcelbo_kernels import cuda
    from mcelbo_kernels.cuda import Recording


def problem_of(
    array: Callable[[Any], Any],
    number: int,
    x: Any,
    mu: Any,
    logvar: Any,
    weight: Any,
    eps: Any,
    parameters: Sequence[Any],
    _seed: Any,
    cell: str,
    activations: Sequence[str],
    activation_parameters: Sequence[float],
    *draw: Any,
) -> Problem:
    """Return an op's arguments as a problem, whose arrays are what `array` makes of tensors, and the seed a number."""
    sampler, num_samples, datum_offset, sample_offset = draw
    layers = (
        Layer(array(w), array(b), Activation(name, parameter))
        for w, b, name, parameter in zip(
            parameters[::2], parameters[1::2], activations, activation_parameters, strict=True
        )
    )
    noise = None if eps is None else array(eps)
    return Problem(
        array(x),
        array(mu),
        array(logvar),
        tuple(layers),
        Draw(num_samples, number, sampler, datum_offset, sample_offset, noise, directions(sampler, mu.shape[1])),
        None if weight is None else array(weight),
        cell,
    )


def need_of(need: Sequence[bool]) -> Need:
    """Return which gradients an op's flags ask for."""
    x, mu, logvar, weight, _eps, *layers = need
    return Need(x, weight, mu, logvar, tuple(zip(layers[::2], layers[1::2], strict=True)))


def ordered(found: Gradients) -> list[Any]:
    """Return gradients in the order of an op's tensors, None where nobody asked."""
    return [found.x, found.mu, found.logvar, found.weight, None, *(each for pair in found.layers for each in pair)]


def in_order(found: Gradients, like: Tensor) -> list[Tensor]:
    """Return gradients as tensors in the order of an op's, empty where nobody asked."""
    return [like.new_empty(0) if array is None else torch.from_numpy(array) for array in ordered(found)]


def cut(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Undo the flattening and joining of tensors of these shapes."""
    pieces = torch.split(flat, [prod(shape) for shape in shapes])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def layers_of(parameters: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Return weights and biases that lie end to end."""
    return cut(parameters, [shape for i, o in pairwise(widths) for shape in ((o, i), (o,))])


def sum_of_errors_on_cpu(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return the op sum_of_errors."""
    problem = problem_of(as_array, int(inputs[5]), x, *inputs[:-1])
    moments, gradients = cpu.value_and_gradients(problem, need_of(inputs[-1]), torch.get_num_threads())
    mean = torch.from_numpy(moments.mean)
    return mean.sum().to(x.dtype), mean, torch.from_numpy(moments.squares), in_order(gradients, x)


def errors_on_cpu(x: Tensor, *inputs: Any) -> Tensor:
    """Return the op errors."""
    return torch.from_numpy(cpu.errors(problem_of(as_array, int(inputs[5]), x, *inputs), torch.get_num_threads()))


def error_gradients_on_cpu(upstream: Tensor, x: Tensor, *inputs: Any) -> Tensor:
    """Return the op error_gradients."""
    *data, parameters, widths, seed = inputs[:7]
    problem = problem_of(as_array, int(seed), x, *data, layers_of(parameters, widths), seed, *inputs[7:-1])
    found = cpu.gradients(problem, as_array(upstream), need_of(inputs[-1]), torch.get_num_threads())
    return torch.cat([gradient.flatten() for gradient in in_order(found, x)])


def sum_of_errors_on_gpu(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return the op sum_of_errors; nothing here waits for the device, but for the first use of Sobol's directions."""
    *data, parameters, seed = inputs[:6]
    need, like = inputs[-1], (x, *data, *parameters)
    if not len(x):
        nothing = x.new_empty(0, dtype=torch.float64)
        return x.new_zeros(()), nothing, nothing.clone(), zeros(like, need)
    mean, squares, *gradients = repeated("value_and_gradients", like, seed, inputs[6:-1], need)
    assert mean is not None
    assert squares is not None
    present = [x.new_empty(0) if gradient is None else gradient for gradient in gradients]
    return mean.sum().to(x.dtype), mean, squares, present


def errors_on_gpu(x: Tensor, *inputs: Any) -> Tensor:
    """Return the op errors."""
    *data, parameters, seed = inputs[:6]
    if not len(x):
        return x.new_empty(0, inputs[-3])
    (errors,) = repeated("errors", (x, *data, *parameters), seed, inputs[6:])
    assert errors is not None
    return errors


def error_gradients_on_gpu(upstream: Tensor, x: Tensor, *inputs: Any) -> Tensor:
    """Return the op error_gradients."""
    *data, parameters, widths, seed = inputs[:7]
    need, like = inputs[-1], (x, *data, *layers_of(parameters, widths))
    if not len(x):
        return torch.cat([gradient.flatten() for gradient in zeros(like, need)])
    gradients = repeated("gradients", like, seed, inputs[7:-1], need, upstream.to(x.dtype))
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def repeated(
    name: str,
    tensors: Sequence[Tensor | None],
    seed: Tensor,
    settings: Sequence[Any],
    need: Sequence[bool] = (),
    upstream: Tensor | None = None,
) -> list[Tensor | None]:
    """Return what a function of `mcelbo_kernels.cuda` computes of an op's tensors, mostly by launches recorded before.

    Parameters
    ----------
    name : str
    tensors : sequence of Tensor or None
        x, mu, logvar, weight, eps, and the layers' weights and biases.
    seed : Tensor
    settings : sequence
        What the op takes beside tensors.
    need : sequence of bool, optional
        Which gradients are asked for.
    upstream : Tensor, optional

    Returns
    -------
    list of Tensor or None
        In the function's order.
    """
    device, (x, mu) = seed.device, tensors[:2]
    assert x is not None
    assert mu is not None
    shapes = tuple([None if tensor is None else tensor.shape for tensor in tensors])
    sampler, num_samples, datum_offset, sample_offset = settings[-4:]
    if any(tensor is not None and tensor.dtype != x.dtype for tensor in tensors) or seed.dtype != torch.int64:
        raise TypeError("expected tensors of one dtype and a seed of int64")
    if upstream is not None and upstream.shape != (len(x), num_samples):
        raise ValueError(f"upstream has shape {tuple(upstream.shape)}: expected {(len(x), num_samples)}")
    # a recording, which is repeated with any offsets, cannot check them
    latent = mu.shape[1]
    draw = Draw(num_samples, 0, sampler, datum_offset, sample_offset, directions=directions(sampler, latent))
    check_draw(draw, len(x), latent, None)
    fixed = [tuple(each) if isinstance(each, list) else each for each in settings[:-2]]
    inputs = (*tensors, seed.reshape(1), upstream)
    with target_on(device) as target:
        # of the offsets this alone decides what is launched
        kind = name, device, str(x.dtype), shapes, (*fixed, sample_offset % 4), tuple(need)
        recording = recorded(*kind)
        if recording is not None:
            return target.repeat(recording, inputs, (datum_offset, sample_offset))
        arrays = [None if tensor is None else target.hold(tensor) for tensor in inputs]
        results = called(name, arrays, (*fixed, datum_offset, sample_offset), need, target)
    sizes = shapes_of_results(name, shapes, num_samples)
    return [None if result is None else result.owner.view(size) for result, size in zip(results, sizes, strict=True)]


@lru_cache(maxsize=64)
def recorded(
    name: str,
    device: torch.device,
    dtype: str,
    shapes: tuple[tuple[int, ...] | None, ...],
    settings: tuple[Any, ...],
    need: tuple[bool, ...],
) -> Recording | None:
    """Record the launches of a kind of call, unless they are too many; see `repeated`."""
    from mcelbo_kernels import cuda

    real, (*fixed, sample_offset) = np.dtype(dtype.removeprefix("torch.")), settings
    places = [None if shape is None else cuda.Place(tuple(shape), real) for shape in shapes]
    (errors,) = shapes_of_results("errors", shapes, fixed[-1])
    upstream = cuda.Place(errors, real) if name == "gradients" else None
    inputs = [*places, cuda.Place((1,), np.dtype(np.int64)), upstream]
    offsets = cuda.Given(0), cuda.Given(sample_offset)

    def call(recorder: cuda.Target) -> list[Any]:
        return called(name, inputs, (*fixed, *offsets), need, recorder)

    with target_on(device) as target:
        return cuda.record(call, inputs, shapes_of_results(name, shapes, fixed[-1]), target, offsets)


def called(
    name: str, arrays: Sequence[Any], settings: Sequence[Any], need: Sequence[bool], target: cuda.Target
) -> list[Any]:
    """Return what a function of `mcelbo_kernels.cuda` returns; `arrays` end in the seed and the upstream gradient."""
    from mcelbo_kernels import cuda

    x, mu, logvar, weight, eps, *parameters, seed, upstream = arrays
    problem = problem_of(lambda array: array, 0, x, mu, logvar, weight, eps, parameters, seed, *settings)
    if name == "errors":
        return [cuda.errors(problem, seed, target)]
    moments: Sequence[Any] = ()
    if name == "gradients":
        found = cuda.gradients(problem, upstream, need_of(need), seed, target)
    else:
        moments, found = cuda.value_and_gradients(problem, need_of(need), seed, target)
    # those of mu and logvar come together
    return [*moments, *[each if needed else None for each, needed in zip(ordered(found), need, strict=True)]]


def shapes_of_results(name: str, shapes: Sequence[Sequence[int] | None], num_samples: int) -> list[tuple[int, ...]]:
    """Return the shapes of what `called` returns: the moments of each datum, if any, come before the gradients."""
    assert shapes[0] is not None
    batch = shapes[0][0]
    if name == "errors":
        return [(batch, num_samples)]
    of_gradients = [() if shape is None else tuple(shape) for shape in shapes]
    return [(batch,), (batch,), *of_gradients] if name == "value_and_gradients" else of_gradients


def noise_on_gpu(draw: Draw, batch: int, latent: int, real: Any, seed: Tensor) -> Tensor:
    """Return the op noise, whose seed lies on the device."""
    from mcelbo_kernels import cuda

    with target_on(seed.device) as target:
        eps: Tensor = cuda.noise(draw, batch, latent, real, target.hold(seed.reshape(1)), target).owner
    return eps.view(batch, draw.num_samples, latent)


def decoded_errors_on_gpu(
    cell: str, y: Tensor, x: Tensor, weight: Tensor | None, upstream: Tensor | None, need: tuple[bool, bool, bool]
) -> list[Tensor | None]:
    """Return the errors of decoded samples and the gradients of y, x and weight."""
    from mcelbo_kernels import cuda

    with target_on(x.device) as target:
        w = None if weight is None else target.hold(weight)
        g = None if upstream is None else target.hold(upstream.to(y.dtype))
        found = cuda.decoded_errors(cell, target.hold(y), target.hold(x), w, g, *need, target)
    shapes = y.shape[:2], y.shape, x.shape, x.shape if weight is None else weight.shape
    owners: list[Any] = [None if array is None else array.owner for array in found]  # type: ignore[union-attr]
    return [None if owner is None else owner.view(shape) for owner, shape in zip(owners, shapes, strict=True)]


def zeros(like: Sequence[Tensor | None], need: Sequence[bool]) -> list[Tensor]:
    """Return the gradients of a batch without data."""
    first = like[0]
    assert first is not None
    return [
        tensor.new_zeros(tensor.shape) if needed and tensor is not None else first.new_empty(0)
        for tensor, needed in zip(like, need, strict=True)
    ]
