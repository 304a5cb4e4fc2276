"""The validator at the door: everything a call is given, checked and brought to one shape, dtype and device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from mcelbo.sobol import check_sobol
from mcelbo_kernels.problem import Array, Draw, check_shapes

HALF = (torch.float16, torch.bfloat16)
COMPUTED = (torch.float32, torch.float64)
SEEDS = 2**63


@dataclass(frozen=True, eq=False)
class Arguments:
    """What one call computes with, the decoder apart (shapes: batch B, latent d, pixels m, samples n).

    All tensors have one device and one dtype, float32 or float64; half precision was promoted differentiably.
    """

    x: Tensor  # (B, m)
    mu: Tensor  # (B, d)
    logvar: Tensor  # (B, d)
    weight: Tensor | None  # (B, m) or (1, m)
    eps: Tensor | None  # (B, n, d), detached
    pixel_shape: torch.Size  # the shape of one datum as the caller has it
    seed: Tensor  # (), int64
    num_samples: int
    sampler: str
    datum_offset: int
    sample_offset: int
    cell: str = "squared_error"  # what a pixel adds to the error

    def pixel_counts(self) -> tuple[float | Tensor, float | Tensor]:
        """Return m_b = sum_j w[b, j], (B,) or one number for all, and its sum over the batch."""
        batch, pixels = self.x.shape
        if self.weight is None:
            return pixels, batch * pixels
        each = self.weight.sum(1)  # (B,) or (1,)
        return each, each.expand(batch).sum()


class Sums(NamedTuple):
    """The errors T (B, n) of a call, summed up: only `total` carries gradients."""

    total: Tensor  # (), of x's dtype: sum_b mean_i T[b, i]
    mean: Tensor  # (B,), float64: mean_i T[b, i]
    squares: Tensor  # (B,), float64: sum_i (T[b, i] - mean[b])^2


def prepare(
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int,
    weight: Tensor | None = None,
    eps: Tensor | None = None,
    sampler: str = "iid",
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    datum_offset: int = 0,
    sample_offset: int = 0,
) -> Arguments:
    """Check all that can be checked without the decoder, and without looking at the values of any data."""
    draw = Draw(
        as_integer("num_samples", num_samples),
        # the expectation itself draws nothing
        sampler="iid" if sampler == "exact" else sampler,
        datum_offset=as_integer("datum_offset", datum_offset),
        sample_offset=as_integer("sample_offset", sample_offset),
    )
    if eps is not None and sampler == "exact":
        raise ValueError("eps was given together with sampler='exact', which uses no noise: give one of them")
    if eps is not None and (seed is not None or generator is not None):
        raise ValueError("eps was given together with seed or generator: eps is the noise itself, so give one of them")
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        # Traced there, an autograd function is taken for the operations in its forward, and the gradients are wrong.
        raise RuntimeError("torch.compile around torch.func transforms of mcelbo's losses is not supported")
    given = {"x": x, "mu": mu, "logvar": logvar, "weight": weight, "eps": eps}
    for name, tensor in given.items():
        if tensor is not None or name in ("x", "mu", "logvar"):
            check_tensor(name, tensor, x)
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected the batch first, then the pixels of a datum")
    pixel_shape = x.shape[1:]
    flat = promote(x).reshape(x.shape[0], pixel_shape.numel())
    pixel_weight = None if weight is None else flat_pixels("weight", promote(weight), x.shape)
    check_shapes(
        tuple(flat.shape),
        tuple(mu.shape),
        tuple(logvar.shape),
        None if pixel_weight is None else tuple(pixel_weight.shape),
        None if eps is None else tuple(eps.shape),
        draw,
    )
    check_sobol(draw, mu.shape[1])
    return Arguments(
        x=flat,
        mu=promote(mu),
        logvar=promote(logvar),
        weight=pixel_weight,
        eps=None if eps is None else promote(eps).detach(),
        pixel_shape=pixel_shape,
        seed=seed_tensor(seed if eps is None else 0, generator, x.device),
        num_samples=draw.num_samples,
        sampler=sampler,
        datum_offset=draw.datum_offset,
        sample_offset=draw.sample_offset,
    )


def refuse_forward_mode(tensors: Iterable[Tensor | None]) -> None:
    """Raise if a tensor has a tangent: autograd would drop it silently where no gradient is required."""
    if any(t is not None and unpack_dual(t).tangent is not None for t in tensors):  # type: ignore[no-untyped-call]
        raise RuntimeError("mcelbo's losses have no forward-mode derivative: use backward, torch.func.vjp or jacrev")


def check_option(name: str, option: object, known: tuple[str, ...]) -> None:
    """Raise a ValueError that lists what is known unless `option` is among it."""
    if option not in known:
        raise ValueError(f"{name} is {option!r}: expected one of {', '.join(map(repr, known))}")


def as_integer(name: str, value: object) -> int:
    """Return `value` as an int, refusing what merely converts to one: True, 3.0, "3"."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {value!r}, {_kind(value)}: expected an integer")
    return int(value)


def check_tensor(name: str, tensor: object, x: Tensor) -> None:
    """Raise unless `tensor` is a dense floating tensor that goes with x."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {_kind(tensor)}: expected a torch.Tensor")
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else f"sparse ({tensor.layout})"
        raise TypeError(f"{name} is {kind}: expected a dense tensor")
    if tensor.device.type == "meta":
        raise ValueError(f"{name} is on the meta device, which holds no data: expected a tensor on the CPU or a GPU")
    if tensor.dtype not in COMPUTED and tensor.dtype not in HALF:
        hints = {"x": "; images are usually x.float() / 255", "weight": "; a mask is usually mask.to(x.dtype)"}
        raise TypeError(f"{name} is {tensor.dtype}: expected float32 or float64{hints.get(name, '')}")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device} and x on {x.device}: move both to one device")
    if (tensor.dtype == torch.float64) != (x.dtype == torch.float64):
        raise TypeError(f"{name} is {tensor.dtype} and x {x.dtype}: expected one dtype")


def as_array(tensor: Tensor) -> Array:
    """View a tensor of any strides as a contiguous array, which kernels take."""
    array: Array = tensor.contiguous().numpy(force=True)
    return array


def promote(tensor: Tensor) -> Tensor:
    """Half precision to float32; gradients are cast back on their way."""
    return tensor.float() if tensor.dtype in HALF else tensor


def flat_pixels(name: str, tensor: Tensor, x_shape: torch.Size) -> Tensor:
    """Broadcast a number for each pixel against x (B, ...) to (B, m), or to (1, m) where all data share them."""
    shape, pixels = tuple(tensor.shape), x_shape[1:]
    missing = len(x_shape) - len(shape)
    aligned = (1,) * missing + shape
    if missing < 0 or any(size not in (1, whole) for size, whole in zip(aligned, x_shape, strict=True)):
        raise ValueError(f"{name} has shape {shape}: expected one that broadcasts to that of x, {tuple(x_shape)}")
    return tensor.expand(aligned[0], *pixels).reshape(aligned[0], pixels.numel())


def seed_tensor(
    seed: int | Tensor | None, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """Return the seed as a 0-d int64 tensor on `device`, drawn from torch's generator there if there is none.

    The value of a seed that comes as a tensor is not looked at, which would wait for the device: the CPU's kernels
    refuse a negative one, and those of a GPU, which cannot, take its 64 bits.
    """
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator is {_kind(generator)}: expected a torch.Generator")
        if seed is not None:
            raise ValueError("seed and generator were both given: a seed leaves nothing to draw, so give one of them")
        if device is not None and generator.device.type != device.type:
            raise ValueError(f"generator is on {generator.device} and the noise on {device}: expected one device")
        return torch.randint(SEEDS - 1, (), generator=generator, dtype=torch.int64, device=device)
    if seed is None:
        return torch.randint(SEEDS - 1, (), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            came = f"a tensor of {seed.dtype} and shape {tuple(seed.shape)}"
            raise TypeError(f"seed is {came}: expected a 0-d int64 tensor")
        if device is not None and seed.device != device:
            raise ValueError(f"seed is on {seed.device} and the noise on {device}: move both to one device")
        return seed
    number = as_integer("seed", seed)
    if not 0 <= number < SEEDS:
        raise ValueError(f"seed is {number}: expected 0 <= seed < 2**63")
    return torch.full((), number, dtype=torch.int64, device=device)


def _kind(value: object) -> str:
    """Name the type of `value` as a person would: int, numpy.ndarray."""
    module, name = type(value).__module__, type(value).__qualname__
    return name if module == "builtins" else f"{module}.{name}"
