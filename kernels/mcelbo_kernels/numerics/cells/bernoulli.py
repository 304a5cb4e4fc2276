"""Bernoulli with logits: t = ln(1 + e^y) - x y, dt/dy = 1/(1 + e^-y) - x, dt/dx = -y.

That is -ln p(x) of a pixel that is 1 with probability 1/(1 + e^-y). ln(1 + e^y) is taken as max(y, 0) + ln(1 + e^-|y|),
so that nothing overflows, and x y off its first part, so that little is lost where the two nearly cancel.
"""

from __future__ import annotations

from typing import Any

from mcelbo_kernels._compile import inline
from mcelbo_kernels.numerics.cells.family import Family
from mcelbo_kernels.numerics.elementary import softplus_parts
from mcelbo_kernels.numerics.lanes import fma


@inline
def bernoulli(y, x):
    """Return (t, dt/dy, dt/dx)."""
    positive, rest, slope = softplus_parts(y)
    return fma(-x, y, positive) + rest, slope - x, -y


def bernoulli_of_arrays(y: Any, x: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Return (t, dt/dy, dt/dx)."""
    e = xp.exp(-xp.abs(y))
    t = y.clip(0.0) - x * y + xp.log1p(e)
    # not a number in place of the ones, which torch copies to a GPU and waits for
    slope = xp.where(y < 0, e, xp.ones_like(e)) / (1.0 + e)
    return t, slope - x, -y


BERNOULLI = Family(bernoulli, bernoulli_of_arrays, empty=-1000.0, outputs=("identity",))
