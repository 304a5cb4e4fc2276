"""The path of any decoder: it is run on chunks of samples, and a kernel reduces its errors.

    z[b,i] = mu[b] + exp(logvar[b]/2) eps[b,i],    y[b,i] = decoder(z[b,i])
    T[b,i] = sum_j w[b,j] t(y[b,i,j], x[b,j]),    t the cell: (x - y)^2 or another

Memory is that of one chunk, whatever the number of samples. What fits into one chunk is left to autograd. Of a sum over
more, each chunk is run backward as soon as it ran forward, and the gradients are added up: the decoder runs once. Where
this would not give the true gradients, which a chunk's autograd graph tells, and where the upstream gradients are not
known yet, chunks are run again in backward, with the same noise and the same random state of torch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mcelbo.anydecoder.chunks import Chunk, Decoded, Plan
from mcelbo.anydecoder.graph import reaches
from mcelbo.anydecoder.reduction import Known, reduced, wide
from mcelbo.arguments import Arguments, Sums
from mcelbo.decoders import Decoder
from mcelbo.moments import Stream


def sum_of_errors(arguments: Arguments, decoder: Decoder) -> Sums:
    """Return sum_b mean_i T[b,i], with gradients for all that the decoder depends on, and the moments of each datum."""
    plan, ledger, moments = Plan(arguments, decoder), Ledger(arguments), Moments()
    followed: Tensor | None = None  # what autograd follows of the sum; the gradients of the rest are in the ledger
    known = torch.zeros((), dtype=wide(arguments.x.device), device=arguments.x.device)
    for chunk in plan:
        errors = _errors_of_chunk(plan, chunk, ledger)
        moments.add(chunk, errors.detach())
        share = errors.sum() / arguments.num_samples
        if share.requires_grad:
            followed = share if followed is None else followed + share
        else:
            known = known + share
    total = ledger.attached(known)
    total = total if followed is None else total + followed
    return Sums(total.to(arguments.x.dtype), *moments.result())


def errors(arguments: Arguments, decoder: Decoder) -> Tensor:
    """Return T (B, n) with gradients for all that the decoder depends on."""
    plan = Plan(arguments, decoder)
    found: dict[int, list[Tensor]] = {}
    for chunk in plan:
        of_rows = found.setdefault(chunk.rows.start, [])
        of_rows.append(_errors_of_chunk(plan, chunk, None).to(arguments.x.dtype))
    return torch.cat([torch.cat(of_rows, dim=1) for of_rows in found.values()])


def _errors_of_chunk(plan: Plan, chunk: Chunk, ledger: Ledger | None) -> Tensor:
    """Return T (b, c); where its gradients can be known already they go into the ledger and it comes detached."""
    if chunk.whole or not plan.differentiable:
        return plan.errors(chunk, plan.decode(chunk))
    if not chunk.leads and (ledger is None or ledger.closed):
        return plan.replayed_errors(chunk)
    # The first chunk stays connected: if it turns out that autograd has to follow it, the decoder need not run again.
    decoded = plan.decode(chunk if chunk.leads else chunk.detached())
    if ledger is not None and _separable(decoded):
        return ledger.add(chunk, decoded)
    if ledger is not None:
        ledger.closed = True
    return plan.errors(chunk, decoded) if chunk.leads else plan.replayed_errors(chunk)


def _separable(decoded: Decoded) -> bool:
    """Whether running the chunk's graph backward now yields what it would yield in the caller's backward."""
    source, found = decoded.source, decoded.survey
    if found is None or not found.separable:
        return False
    # Weights that are also behind the samples would get their gradient by that way now, and again later.
    return source is None or not reaches(source.node, found.leaves)


class Ledger:
    """Gradients of sum_b mean_i T[b,i], added up over chunks in wide precision.

    A chunk of c samples enters with the gradients of its own mean and the weight c/n, so that what runs through the
    decoder is of the size that it has in one pass over c samples, which half precision needs.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.closed = False  # once a chunk could not be added
        self._gradients: dict[int, tuple[Tensor, Tensor]] = {}  # by identity: a tensor and its gradient

    def add(self, chunk: Chunk, decoded: Decoded) -> Tensor:
        """Add the gradients of a chunk; return its errors T (b, c), detached."""
        a, part, y = self.arguments, chunk.arguments, decoded.y
        weight_needed = a.weight is not None and a.weight.requires_grad
        found = reduced(
            a.cell,
            y,
            part.x,
            part.weight,
            upstream=torch.full(y.shape[:2], 1 / chunk.count, dtype=y.dtype, device=y.device),
            need=(y.requires_grad, a.x.requires_grad, weight_needed),
        )
        share = chunk.count / a.num_samples
        self._add(a.x, found.x, share, chunk.rows)
        if a.weight is not None:
            self._add(a.weight, found.weight, share, chunk.rows if len(a.weight) == len(a.x) else slice(None))
        if found.y is not None:
            self._add_through_decoder(chunk, decoded, found.y, share)
        return found.errors

    def _add_through_decoder(self, chunk: Chunk, decoded: Decoded, dy: Tensor, share: float) -> None:
        spread, y, source, survey = decoded
        leaves = () if survey is None else survey.leaves
        inputs: list[Tensor | GradientEdge] = [*leaves] if source is None else [source, *leaves]
        # The decoder chose its precisions in forward: outside of autocast, its backward keeps them.
        with torch.autocast(y.device.type, enabled=False):
            gradients = list(torch.autograd.grad(y, inputs, dy, allow_unused=True))  # type: ignore[arg-type]
        dz = None if source is None else gradients.pop(0)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            self._add(leaf, gradient, share, slice(None))
        if dz is None:
            return
        # z = mu + spread, spread = exp(logvar/2) eps:    dz/dmu = 1,    dz/dlogvar = spread/2
        a, sums = self.arguments, wide(dz.device)
        if a.mu.requires_grad:
            self._add(a.mu, dz.sum(1, dtype=sums), share, chunk.rows)
        if a.logvar.requires_grad:
            self._add(a.logvar, (dz * spread.detach()).sum(1, dtype=sums) / 2, share, chunk.rows)

    def _add(self, tensor: Tensor, gradient: Tensor | None, share: float, rows: slice) -> None:
        if gradient is None:
            return
        if id(tensor) not in self._gradients:
            dtype = torch.promote_types(tensor.dtype, wide(tensor.device))
            self._gradients[id(tensor)] = tensor, torch.zeros_like(tensor, dtype=dtype)
        total = self._gradients[id(tensor)][1]
        if tensor.dim():
            total = total[rows]
        total.add_(gradient, alpha=share)

    def attached(self, value: Tensor) -> Tensor:
        """Return the value as a function of the tensors whose gradients were added up."""
        if not self._gradients:
            return value
        tensors = [tensor for tensor, _ in self._gradients.values()]
        gradients = [total.to(tensor.dtype) for tensor, total in self._gradients.values()]
        attached: Tensor = Known.apply(value, *tensors, *gradients)  # type: ignore[no-untyped-call]
        return attached


class Moments:
    """Mean and squared deviations of each datum's errors, merged chunk by chunk."""

    def __init__(self) -> None:
        self._of_rows: dict[int, Stream] = {}  # by the first datum

    def add(self, chunk: Chunk, errors: Tensor) -> None:
        """Merge the errors (b, c) of a chunk."""
        mean = errors.mean(1)
        squares = (errors - mean.unsqueeze(1)).square().sum(1)
        self._of_rows.setdefault(chunk.rows.start, Stream()).add(mean, chunk.count, squares)

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean_i T[b,i] and sum_i (T[b,i] - mean[b])^2, each (B,)."""
        streams = self._of_rows.values()
        return torch.cat([s.mean for s in streams]), torch.cat([s.squares for s in streams])
