"""The one description of a computation that every backend reads, and the checks at its door."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mcelbo_kernels.numerics import cells

SAMPLERS = ("iid", "antithetic", "sobol")
ACTIVATIONS = (
    "identity",
    "relu",
    "leaky_relu",
    "tanh",
    "sigmoid",
    "softplus",
    "elu",
    "gelu",
    "gelu_tanh",
    "silu",
)
CELLS = tuple(cells.BY_NAME)
LARGEST_DATUM = 2**32  # a datum's index is one word of the Philox counter
LARGEST_SAMPLE = 2**63

Array = NDArray[Any]


class Activation(NamedTuple):
    """A pointwise activation by name, with the one parameter that some of them have.

    Attributes
    ----------
    name : str
        One of `ACTIVATIONS`.
    parameter : float
        The slope below zero of "leaky_relu", the limit's size of "elu"; the others ignore it.
    """

    name: str = "identity"
    parameter: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """An affine layer and the activation after it: h = activation(z weight^T + bias).

    Attributes
    ----------
    weight : ndarray, shape (outputs, inputs)
    bias : ndarray, shape (outputs,)
    activation : Activation
    """

    weight: Array
    bias: Array
    activation: Activation = field(default_factory=Activation)


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Which noise: eps[b, i, k] is a pure function of these fields, b, i and k.

    "iid" is independent, "antithetic" draws pairs of opposite samples, and "sobol" lets each datum's samples be points
    of a Sobol sequence, scrambled independently for every datum and latent: sample i is point i in Gray code order.

    Attributes
    ----------
    num_samples : int
        Samples per datum, n.
    seed : int
        0 <= seed < 2^63.
    sampler : str
        One of `SAMPLERS`.
    datum_offset, sample_offset : int
        Added to b and to i: the noise of a slice of a batch, or of a part of the samples, is that of the whole.
    eps : ndarray, shape (B, n, d), optional
        The caller's own noise instead; the other fields, num_samples apart, are then ignored.
    directions : ndarray of uint32, shape (d or more, bits), optional
        The direction numbers of "sobol": those of each latent for the bits of the points' Gray code, lowest first, with
        the first digit in the highest bit. At most 2^bits points can be drawn. By default SciPy's, if it is installed.
    """

    num_samples: int
    seed: int = 0
    sampler: str = "iid"
    datum_offset: int = 0
    sample_offset: int = 0
    eps: Array | None = None
    directions: NDArray[np.uint32] | None = None

    def __post_init__(self) -> None:
        n, first = self.num_samples, self.sample_offset
        if n < 1:
            raise ValueError(f"num_samples is {n}: expected at least 1")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}: expected one of {', '.join(map(repr, SAMPLERS))}")
        if self.sampler == "antithetic" and (n % 2 or first % 2):
            raise ValueError(
                f"num_samples is {n} and sample_offset {first}: sampler='antithetic' draws pairs, so both must be even"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}: expected 0 <= seed < 2**63")
        if not 0 <= self.datum_offset < LARGEST_DATUM:
            raise ValueError(f"datum_offset is {self.datum_offset}: expected 0 <= datum_offset < 2**32")
        if first < 0 or first + n > LARGEST_SAMPLE:
            raise ValueError(
                f"sample_offset is {first} and num_samples {n}: "
                "expected 0 <= sample_offset and at most 2**63 samples in all"
            )
        if self.sampler == "sobol":
            check_points(first, n, self.directions)


def check_points(first: int, count: int, directions: Array | None) -> None:
    """Raise an error unless there are so many Sobol points, and the direction numbers, if given, are of their kind."""
    bits = 32
    if directions is not None:
        if directions.dtype != np.uint32:
            raise TypeError(f"directions is {directions.dtype}: expected uint32")
        if directions.ndim != 2 or not 1 <= directions.shape[1] <= 32:
            raise ValueError(f"directions has shape {directions.shape}: expected (latent, bits) with at most 32 bits")
        bits = directions.shape[1]
    if first + count > 2**bits:
        raise ValueError(
            f"sample_offset is {first} and num_samples {count}: sampler='sobol' has 2**{bits} points in all"
        )


def check_draw(draw: Draw, batch: int, latent: int, eps: tuple[int, ...] | None) -> None:
    """Raise a ValueError unless injected noise is (B, n, d), and the draw has so many data and latents."""
    expected = (batch, draw.num_samples, latent)
    if eps is not None and eps != expected:
        raise ValueError(f"eps has shape {eps}: expected (batch, num_samples, latent) = {expected}")
    if draw.datum_offset + batch > LARGEST_DATUM:
        raise ValueError(f"datum_offset is {draw.datum_offset} and the batch {batch}: together they exceed 2**32 data")
    directions = draw.directions if draw.sampler == "sobol" else None
    if directions is not None and latent > len(directions):
        raise ValueError(f"directions are for {len(directions)} latents: expected at least {latent}")


def check_shapes(
    x: tuple[int, ...],
    mu: tuple[int, ...],
    logvar: tuple[int, ...],
    weight: tuple[int, ...] | None,
    eps: tuple[int, ...] | None,
    draw: Draw,
) -> None:
    """Raise a ValueError that names the argument unless x (B, m), mu and logvar (B, d), weight (B or 1, m) agree."""
    for name, shape in (("x", x), ("mu", mu), ("logvar", logvar)):
        if len(shape) != 2:
            raise ValueError(f"{name} has shape {shape}: expected two dimensions, batch first")
    if logvar != mu:
        raise ValueError(f"logvar has shape {logvar} but mu has shape {mu}: expected the same shape")
    if x[0] != mu[0]:
        raise ValueError(f"x has a batch of {x[0]} but mu has a batch of {mu[0]}: expected the same")
    if weight is not None and weight not in (x, (1, x[1])):
        raise ValueError(f"weight has shape {weight}: expected {x} or {(1, x[1])}")
    check_draw(draw, mu[0], mu[1], eps)


def check_layers(shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], latent: int, pixels: int) -> None:
    """Raise a ValueError unless the layers' (weight, bias) shapes lead from `latent` to `pixels`."""
    if not shapes:
        raise ValueError("decoder has no layers: expected at least one affine layer")
    width = latent
    for index, (weight, bias) in enumerate(shapes):
        if len(weight) != 2 or bias != weight[:1]:
            raise ValueError(
                f"layer {index} of the decoder has weight {weight} and bias {bias}: expected (o, i) and (o,)"
            )
        if weight[1] != width:
            source = f"mu has {width} latents" if index == 0 else f"the layer before it gives {width}"
            raise ValueError(f"layer {index} of the decoder takes {weight[1]} inputs but {source}")
        width = weight[0]
    if width != pixels:
        raise ValueError(f"decoder returns {width} pixels but x has {pixels} pixels per datum")


def accepts(cell: str, activation: str) -> bool:
    """Tell whether a decoder may end with `activation` before the cell."""
    outputs = cells.BY_NAME[cell].outputs
    return outputs is None or activation in outputs


def check_cell(cell: str, activation: str) -> None:
    """Raise a ValueError unless the cell is known and accepts the decoder's last activation."""
    if cell not in CELLS:
        raise ValueError(f"cell is {cell!r}: expected one of {', '.join(map(repr, CELLS))}")
    if not accepts(cell, activation):
        expected = " or ".join(map(repr, cells.BY_NAME[cell].outputs or ()))
        raise ValueError(f"cell is {cell!r} and the last activation {activation!r}: expected {expected}")


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Everything that the errors of a decoder's samples depend on (shapes: batch B, latent d, pixels m).

    Attributes
    ----------
    x : ndarray, shape (B, m)
    mu, logvar : ndarray, shape (B, d)
        The posterior's mean and log variance.
    layers : tuple of Layer
        The decoder, from d inputs to m outputs.
    draw : Draw
    weight : ndarray, shape (B, m) or (1, m), optional
        Pixel weights w >= 0; a weight of 0 excludes the pixel whatever it holds.
    cell : str
        What a pixel adds to the error, one of `CELLS`: "squared_error", or "bernoulli" of logits.
    """

    x: Array
    mu: Array
    logvar: Array
    layers: tuple[Layer, ...]
    draw: Draw
    weight: Array | None = None
    cell: str = "squared_error"

    def __post_init__(self) -> None:
        optional = {"weight": self.weight, "eps": self.draw.eps}
        named = {"x": self.x, "mu": self.mu, "logvar": self.logvar}
        named |= {name: array for name, array in optional.items() if array is not None}
        named |= {f"weight of layer {i}": layer.weight for i, layer in enumerate(self.layers)}
        named |= {f"bias of layer {i}": layer.bias for i, layer in enumerate(self.layers)}
        for name, array in named.items():
            if array.dtype not in (np.float32, np.float64):
                raise TypeError(f"{name} is {array.dtype}: expected float32 or float64")
            if array.dtype != self.x.dtype:
                raise TypeError(f"{name} is {array.dtype} but x is {self.x.dtype}: expected one dtype")
        check_shapes(
            self.x.shape,
            self.mu.shape,
            self.logvar.shape,
            None if self.weight is None else self.weight.shape,
            None if self.draw.eps is None else self.draw.eps.shape,
            self.draw,
        )
        for layer in self.layers:
            if layer.activation.name not in ACTIVATIONS:
                known = ", ".join(ACTIVATIONS)
                raise ValueError(f"activation is {layer.activation.name!r}: expected one of {known}")
        shapes = tuple((layer.weight.shape, layer.bias.shape) for layer in self.layers)
        check_layers(shapes, self.mu.shape[1], self.x.shape[1])
        check_cell(self.cell, self.layers[-1].activation.name)


def check_upstream(upstream: tuple[int, ...], problem: Problem) -> None:
    """Raise a ValueError unless there is one upstream gradient for each sample's error."""
    expected = (len(problem.x), problem.draw.num_samples)
    if upstream != expected:
        raise ValueError(f"upstream has shape {upstream}: expected (batch, num_samples) = {expected}")


class Need(NamedTuple):
    """Which gradients are asked for; `layers` holds a (weight, bias) pair for each layer."""

    x: bool
    weight: bool
    mu: bool
    logvar: bool
    layers: tuple[tuple[bool, bool], ...]

    @property
    def gradient(self) -> bool:
        """Whether there is any."""
        return self.x or self.weight or self.mu or self.logvar or any(map(any, self.layers))

    @classmethod
    def everything(cls, problem: Problem) -> Need:
        """Ask for all gradients that `problem` has."""
        return cls(True, problem.weight is not None, True, True, ((True, True),) * len(problem.layers))

    @classmethod
    def nothing(cls, problem: Problem) -> Need:
        """Ask for no gradient."""
        return cls(False, False, False, False, ((False, False),) * len(problem.layers))


class Gradients(NamedTuple):
    """Gradients in the shapes and dtypes of their inputs; None where nobody asked.

    `weight` has the shape of the pixel weight, so a weight shared by the batch gets the batch's sum.
    """

    x: Array | None
    weight: Array | None
    mu: Array | None
    logvar: Array | None
    layers: tuple[tuple[Array | None, Array | None], ...]


class Moments(NamedTuple):
    """The samples' errors of each datum, summarised: nothing of size n is kept.

    Attributes
    ----------
    mean : ndarray, shape (B,), float64
        mean_i T[b, i]
    squares : ndarray, shape (B,), float64
        sum_i (T[b, i] - mean[b])^2
    """

    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
