"""From a torch module to the layers that a fused kernel runs, and the one place that chooses a decoder's path."""

from __future__ import annotations

from collections.abc import Callable
from operator import eq
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.lazy import LazyModuleMixin

from mcelbo.arguments import Arguments, check_tensor, promote
from mcelbo.gpu import has_kernels, require
from mcelbo_kernels.cpu import gram
from mcelbo_kernels.problem import Activation, accepts, check_layers

Decoder = Callable[[Tensor], Tensor]

SIMPLE = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.Identity: "identity"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
REPLICATED = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


class Affine(NamedTuple):
    """An affine layer as torch keeps it, and the activation after it."""

    weight: Tensor  # (o, i)
    bias: Tensor | None  # (o,)
    activation: Activation


class Description(NamedTuple):
    """A decoder that is nothing but affine layers and pointwise activations."""

    layers: tuple[Affine, ...]
    output: tuple[int, ...]  # the shape of one decoded datum


class Unfusable(NamedTuple):
    """Why a decoder cannot be described so."""

    reason: str


class Explanation(NamedTuple):
    """Which path a decoder takes.

    Attributes
    ----------
    path : str
        "grid": sample, decode, error and sum are one fused pass. "gram": sums of squared errors come from a fused pass
        that stops at the last hidden layer and touches no pixel. "any": the decoder runs on chunks of samples.
    device : str
        "cpu" or "cuda".
    reason : str
    """

    path: str
    device: str
    reason: str

    def __str__(self) -> str:
        way = "runs on chunks of samples" if self.path == "any" else "is fused into one pass"
        return f"{self.path} on {self.device}: the decoder {way}, because {self.reason}"


class Path(NamedTuple):
    """A chosen path, and the layers of a decoder that is nothing else, fused or not."""

    explanation: Explanation
    description: Description | None

    @property
    def fused(self) -> bool:
        """Whether the decoder runs in the fused pass."""
        return self.explanation.path != "any"


def choose(decoder: Decoder, device: torch.device, cell: str = "squared_error") -> Path:
    """Choose the path of a decoder for tensors on `device` and a cell; this is the only place that does."""
    if not callable(decoder):
        raise TypeError(f"decoder is {type(decoder).__qualname__}: expected a torch module or another callable")
    _refuse_replicated(decoder)
    found = describe(decoder)
    if isinstance(found, Unfusable):
        if isinstance(decoder, nn.Module):
            for part in decoder.modules():
                _refuse_replicated(part)
        return Path(Explanation("any", device.type, found.reason), None)
    last = found.layers[-1].activation.name
    if cell == "bernoulli" and last == "sigmoid":
        raise ValueError(
            "decoder ends in a Sigmoid: with Bernoulli() the decoder must return logits, so drop the Sigmoid"
        )
    if not has_kernels(device):
        return Path(Explanation("any", device.type, f"there are no fused kernels for {device.type} tensors"), found)
    if not accepts(cell, last):
        return Path(Explanation("any", device.type, f"{cell} is not fused after {last} output"), found)
    if device.type == "cuda" and not torch.compiler.is_compiling():
        require(device)  # which cannot be traced: a traced op requires it when it runs
    return Path(Explanation("grid", device.type, f"it is {_in_words(found)}"), found)


def _in_words(description: Description) -> str:
    """Name the layers of a decoder."""
    layers = description.layers
    last = f"{layers[-1].activation.name} output"
    if len(layers) == 1:
        outputs, inputs = layers[0].weight.shape
        return f"one affine layer from {inputs} to {outputs} with {last}"
    widths = [layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in layers)]
    return f"{len(layers)} affine layers, {' to '.join(map(str, widths))}, with {last}"


def explain(decoder: Decoder, x: Tensor | None = None, num_samples: int | None = None) -> Explanation:
    """Say which path a decoder takes, and why.

    A decoder that is a stack of affine layers :math:`f(W z + b)` with pointwise activations f is fused: its samples are
    drawn, decoded, compared and summed in one pass. Any other decoder is run on chunks of samples. Both give the same
    numbers for the same seed. Under a Bernoulli likelihood only identity output is fused.

    Parameters
    ----------
    decoder : callable
        What would be passed to `elbo`.
    x : Tensor, optional
        Data of shape (B, m) or (B, ...); its device counts and its pixels are compared with the decoder's. Without it
        the device is that of the decoder's first parameter.
    num_samples : int, optional
        With x, whether a sum or mean of squared errors over so many samples takes the quadratic form of the last hidden
        layer, which identity output allows, is answered too.

    Returns
    -------
    Explanation
        A named tuple (path, device, reason) that prints as a sentence.

    Raises
    ------
    TypeError
        If `decoder` is not callable, or wrapped for distributed training.
    ValueError
        If the decoder does not return what x needs.

    Examples
    --------
    >>> import torch, mcelbo
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 784), torch.nn.Sigmoid())
    >>> print(mcelbo.explain(decoder))
    grid on cpu: the decoder is fused into one pass, because it is one affine layer from 2 to 784 with sigmoid output
    """
    if x is not None:
        check_tensor("x", x, x)
        device = x.device
    else:
        parameters = decoder.parameters() if isinstance(decoder, nn.Module) else iter(())
        first = next(parameters, None)
        device = torch.get_default_device() if first is None else first.device
    path = choose(decoder, device)
    if x is not None and path.description is not None:
        _check_output(path.description, x.shape[1:], x.shape)
        if num_samples is not None and path.fused and _takes_gram(path.description, x, num_samples):
            reason = f"{path.explanation.reason}, and sums of its squared errors are a quadratic form of its last input"
            return path.explanation._replace(path="gram", reason=reason)
    return path.explanation


def _takes_gram(description: Description, x: Tensor, num_samples: int) -> bool:
    """Tell whether sums of squared errors go by the quadratic form of the last layer's input."""
    last = description.layers[-1]
    pixels, hidden = last.weight.shape
    pays = gram.pays
    if x.device.type == "cuda":
        from mcelbo_kernels.cuda import choice

        pays = choice.pays
    return last.activation.name == "identity" and pays(len(x), num_samples, hidden, pixels)


def parameters(description: Description, arguments: Arguments) -> list[Tensor]:
    """Return the layers' tensors W0, b0, W1, b1, ... in the arguments' dtype, or raise if they do not go with them."""
    x, tensors = arguments.x, []
    for index, layer in enumerate(description.layers):
        # A missing bias is one that nobody asks a gradient of.
        bias = layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
        for name, tensor in (("weight", layer.weight), ("bias", bias)):
            if tensor.device != x.device:
                raise ValueError(
                    f"{name} of layer {index} of the decoder is on {tensor.device} and x on {x.device}: "
                    "move both to one device"
                )
            promoted = promote(tensor)
            if promoted.dtype != x.dtype:
                raise TypeError(
                    f"{name} of layer {index} of the decoder is {tensor.dtype} and x {x.dtype}: expected one dtype"
                )
            tensors.append(promoted)
    _check_output(description, arguments.pixel_shape, (x.shape[0], *arguments.pixel_shape))
    shapes = tuple(tuple(tensor.shape) for tensor in tensors)
    check_layers(tuple(zip(shapes[::2], shapes[1::2], strict=True)), arguments.mu.shape[1], x.shape[1])
    return tensors


def _check_output(description: Description, pixel_shape: torch.Size, x_shape: tuple[int, ...]) -> None:
    """Raise unless one decoded datum is (m,) or has the shape of a datum of x."""
    width, pixels = description.layers[-1].weight.shape[0], pixel_shape.numel()
    if width != pixels:
        raise ValueError(f"decoder returns {width} pixels but x has shape {tuple(x_shape)}, {pixels} pixels per datum")
    # number by number, because the compiler takes tuples of numbers that are not known to it for different ones
    if not any(
        len(description.output) == len(shape) and all(map(eq, description.output, shape))
        for shape in ((pixels,), tuple(pixel_shape))
    ):
        raise ValueError(
            f"decoder returns data of shape {description.output} but x has shape {tuple(x_shape)}: "
            f"expected {(pixels,)} or {tuple(pixel_shape)} per datum"
        )


def describe(decoder: Decoder) -> Description | Unfusable:
    """Read a decoder's layers live from its modules, or say what in it cannot be fused."""
    leaves: list[tuple[str, nn.Module]] = []
    if any(getattr(torch_module, "_global" + hooks) for hooks in HOOKS):
        return Unfusable("there are hooks for all modules, which a fused pass would not call")
    reason = _collect("decoder", decoder, leaves)
    if reason is not None:
        return Unfusable(reason)
    layers: list[Affine] = []
    output: tuple[int, ...] = ()  # empty until an Unflatten
    for name, leaf in leaves:
        if type(leaf) is nn.Linear:
            if output:
                return Unfusable(f"{name} (Linear) comes after Unflatten, so it acts on the last axis alone")
            tensors = [leaf.weight] if leaf.bias is None else [leaf.weight, leaf.bias]
            if any(type(t) not in (Tensor, nn.Parameter) or t.layout is not torch.strided for t in tensors):
                return Unfusable(f"{name} (Linear) has parameters that are not plain dense tensors")
            layers.append(Affine(leaf.weight, leaf.bias, Activation()))
            continue
        if type(leaf) is nn.Flatten and (leaf.start_dim, leaf.end_dim) == (1, -1):
            output = ()
            continue
        activation = _activation(leaf)
        if activation is not None and activation.name == "identity":
            continue
        if not layers:
            return Unfusable(f"it starts with {name} ({type(leaf).__name__}) and not with a Linear layer")
        if type(leaf) is nn.Unflatten:
            output = () if output else _unflattened(leaf, layers[-1].weight.shape[0])
            if not output:
                return Unfusable(f"{name} ({leaf}) does more than shape the pixels")
            continue
        if activation is None:
            return Unfusable(f"{name} ({leaf}) is not among the layers that are fused")
        if layers[-1].activation.name != "identity":
            return Unfusable(f"{name} ({leaf}) is a second activation in a row")
        layers[-1] = layers[-1]._replace(activation=activation)
    if not layers:
        return Unfusable("it has no Linear layer")
    return Description(tuple(layers), output or (layers[-1].weight.shape[0],))


def _collect(name: str, part: Decoder, leaves: list[tuple[str, nn.Module]]) -> str | None:
    """Append the modules that `part` runs, in order; return what stands in the way, if anything does."""
    if not isinstance(part, nn.Module):
        return f"{name} is not a module but another callable"
    kind = type(part)
    if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
        if isinstance(part, LazyModuleMixin):
            return f"{name} ({kind.__name__}) knows its shape only after a first call"
        return f"{name} ({kind.__name__}) has hooks, which a fused pass would not call"
    if kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo"):
        return _collect(name, part._orig_mod, leaves)  # type: ignore[arg-type]
    if "forward" in part.__dict__:
        return f"{name} ({kind.__name__}) has a forward method of its own"
    if kind is not nn.Sequential:
        leaves.append((name, part))
        return None
    for key, child in part._modules.items():
        reason = _collect(f"{name}.{key}", child, leaves)  # type: ignore[arg-type]
        if reason is not None:
            return reason
    return None


def _activation(leaf: nn.Module) -> Activation | None:
    """Return the activation that a module is, or None; a subclass may do anything, so only the exact types count."""
    kind: type[Any] = type(leaf)
    if kind in SIMPLE:
        return Activation(SIMPLE[kind])
    if kind is nn.LeakyReLU:
        return Activation("leaky_relu", float(cast(float, leaf.negative_slope)))
    if kind is nn.ELU:
        return Activation("elu", float(cast(float, leaf.alpha)))
    if kind is nn.Softplus and leaf.beta == 1 and leaf.threshold == 20:
        return Activation("softplus")
    if kind is nn.GELU and leaf.approximate in ("none", "tanh"):
        return Activation("gelu" if leaf.approximate == "none" else "gelu_tanh")
    if kind is nn.Dropout and (not leaf.training or leaf.p == 0):
        return Activation()
    return None


def _unflattened(leaf: nn.Unflatten, width: int) -> tuple[int, ...]:
    """Return the shape that an Unflatten gives the pixels, or () if it is anything but a shape of all of them."""
    if leaf.dim not in (1, -1) or not all(isinstance(size, int) for size in leaf.unflattened_size):
        return ()
    shape = tuple(int(size) for size in leaf.unflattened_size)
    known = 1
    for size in shape:
        known *= size if size != -1 else 1
    if shape.count(-1) == 1 and known > 0 and width % known == 0:
        return tuple(width // known if size == -1 else size for size in shape)
    return shape if known == width and -1 not in shape else ()


def _refuse_replicated(module: object) -> None:
    """Raise for modules whose gradients are exchanged by a forward that a fused or chunked pass does not go through."""
    for kind in type(module).__mro__:
        if kind.__name__ in REPLICATED and kind.__module__.startswith("torch."):
            raise TypeError(
                f"decoder is wrapped in {kind.__name__}, whose ranks would end with unequal gradients: wrap one module "
                "that holds the decoder and calls the loss in its forward instead"
            )
