"""What the fused ops compute, on the CPU and on a GPU: tensors to a `Problem` and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from mcelbo.arguments import as_array
from mcelbo.gpu import target_on
from mcelbo.sobol import directions
from mcelbo_kernels import cpu
from mcelbo_kernels.problem import Activation, Draw, Gradients, Layer, Need, Problem


def problem_of(
    array: Callable[[Tensor], Any],
    number: int,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    weight: Tensor | None,
    eps: Tensor | None,
    tensors: Sequence[Tensor],
    _seed: Tensor,
    cell: str,
    activations: list[str],
    activation_parameters: list[float],
    *draw: Any,
) -> Problem:
    """Return an op's arguments as a problem, whose arrays are what `array` makes of tensors, and the seed a number."""
    sampler, num_samples, datum_offset, sample_offset = draw
    layers = (
        Layer(array(w), array(b), Activation(name, parameter))
        for w, b, name, parameter in zip(tensors[::2], tensors[1::2], activations, activation_parameters, strict=True)
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


def in_order(found: Gradients, tensor: Callable[[Any], Tensor], like: Tensor) -> list[Tensor]:
    """Return gradients in the order of an op's tensors, empty where nobody asked."""
    of_layers = (gradient for pair in found.layers for gradient in pair)
    ordered = (found.x, found.mu, found.logvar, found.weight, None, *of_layers)
    return [like.new_empty(0) if gradient is None else tensor(gradient) for gradient in ordered]


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
    return mean.sum().to(x.dtype), mean, torch.from_numpy(moments.squares), in_order(gradients, torch.from_numpy, x)


def errors_on_cpu(x: Tensor, *inputs: Any) -> Tensor:
    """Return the op errors."""
    return torch.from_numpy(cpu.errors(problem_of(as_array, int(inputs[5]), x, *inputs), torch.get_num_threads()))


def error_gradients_on_cpu(upstream: Tensor, x: Tensor, *inputs: Any) -> Tensor:
    """Return the op error_gradients."""
    *data, parameters, widths, seed = inputs[:7]
    problem = problem_of(as_array, int(seed), x, *data, layers_of(parameters, widths), seed, *inputs[7:-1])
    found = cpu.gradients(problem, as_array(upstream), need_of(inputs[-1]), torch.get_num_threads())
    return torch.cat([gradient.flatten() for gradient in in_order(found, torch.from_numpy, x)])


def sum_of_errors_on_gpu(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return the op sum_of_errors; nothing here waits for the device."""
    from mcelbo_kernels import cuda

    *given, need = inputs
    like = (x, *given[:4], *given[4])
    if not len(x):
        nothing = x.new_empty(0, dtype=torch.float64)
        return x.new_zeros(()), nothing, nothing.clone(), zeros(like, need)
    with target_on(x.device) as target:
        problem = problem_of(target.hold, 0, x, *given)
        seed = target.hold(given[5].reshape(1))
        moments, gradients = cuda.value_and_gradients(problem, need_of(need), seed, target)
    mean, squares = (array.owner for array in moments)  # type: ignore[attr-defined]
    return mean.sum().to(x.dtype), mean, squares, in_shape(gradients, like, need)


def errors_on_gpu(x: Tensor, *inputs: Any) -> Tensor:
    """Return the op errors."""
    from mcelbo_kernels import cuda

    if not len(x):
        return x.new_empty(0, inputs[-3])
    with target_on(x.device) as target:
        problem = problem_of(target.hold, 0, x, *inputs)
        errors: Tensor = cuda.errors(problem, target.hold(inputs[5].reshape(1)), target).owner
    return errors.view(len(x), -1)


def error_gradients_on_gpu(upstream: Tensor, x: Tensor, *inputs: Any) -> Tensor:
    """Return the op error_gradients."""
    from mcelbo_kernels import cuda

    *data, parameters, widths, seed = inputs[:7]
    need, layers = inputs[-1], layers_of(parameters, widths)
    like = (x, *data, *layers)
    if not len(x):
        return torch.cat([gradient.flatten() for gradient in zeros(like, need)])
    with target_on(x.device) as target:
        problem = problem_of(target.hold, 0, x, *data, layers, seed, *inputs[7:-1])
        factors = target.hold(upstream.to(x.dtype))
        found = cuda.gradients(problem, factors, need_of(need), target.hold(seed.reshape(1)), target)
    return torch.cat([gradient.flatten() for gradient in in_shape(found, like, need)])


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


def in_shape(found: Gradients, like: Sequence[Tensor | None], need: Sequence[bool]) -> list[Tensor]:
    """Return a device's flat gradients as tensors like those they belong to, empty where nobody asked."""
    flat = in_order(found, lambda array: array.owner, like[0])  # type: ignore[arg-type]
    return [
        gradient.view(tensor.shape) if needed and tensor is not None else gradient.new_empty(0)
        for gradient, tensor, needed in zip(flat, like, need, strict=True)
    ]


def zeros(like: Sequence[Tensor | None], need: Sequence[bool]) -> list[Tensor]:
    """Return the gradients of a batch without data."""
    first = like[0]
    assert first is not None
    return [
        tensor.new_zeros(tensor.shape) if needed and tensor is not None else first.new_empty(0)
        for tensor, needed in zip(like, need, strict=True)
    ]
