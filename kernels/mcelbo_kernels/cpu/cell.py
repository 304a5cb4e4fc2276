"""The cell as a static argument: which activations and likelihood a kernel is compiled for."""

from __future__ import annotations

from dataclasses import dataclass

from numba import types
from numba.extending import overload

from mcelbo_kernels._compile import inline
from mcelbo_kernels.cpu.shape import register_static, static
from mcelbo_kernels.numerics import activations, cells


@dataclass(frozen=True, slots=True)
class Cell:
    """The likelihood of the pixels after the last activation, and the activations between the layers.

    Attributes
    ----------
    output : str
        The last layer's activation.
    hidden : tuple of str
        The other layers' activations, each once.
    likelihood : str
        The family of cells.
    gradient : bool
        Whether there are gradients.
    weighted : bool
        Whether pixels have weights, or gradients are needed by the data.
    thin : bool
        Whether there is one layer, from so few latents that `thin` passes over it.
    """

    output: str
    hidden: tuple[str, ...]
    likelihood: str
    gradient: bool
    weighted: bool
    thin: bool = False


class CellType(types.Type):
    """The numba type of a `Cell`; it carries the fields."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        super().__init__(name=repr(cell))


register_static(Cell, CellType)

# The likelihood of a pass over the last hidden layer instead of the pixels: see `quadratic`.
QUADRATIC = "quadratic"
has_gradient = static(lambda kind: kind.cell.gradient)
is_weighted = static(lambda kind: kind.cell.weighted)
# Whether the last layer's pass leaves the gradient by the layer's input as well.
is_whole = static(lambda kind: kind.cell.likelihood == QUADRATIC or kind.cell.thin)
is_thin = static(lambda kind: kind.cell.thin)


def padding_of(cell: Cell) -> float:
    """Return the pre-activation at which a pixel x = 0 adds nothing, to the error and to any gradient."""
    if cell.likelihood == QUADRATIC:
        return 0.0
    return cells.BY_NAME[cell.likelihood].empty or activations.ZERO_AT.get(cell.output, 0.0)


def evaluate(cell, a, x, parameter):
    """Return (t, dt/da, dt/dx) of pre-activations a and pixels x, scalars or vectors."""


@overload(evaluate, jit_options={"forceinline": True})
def evaluate_by_name(cell, a, x, parameter):
    """Choose the activation and the likelihood when the kernel is compiled."""
    activation = activations.BY_NAME[cell.cell.output]
    likelihood = cells.BY_NAME[cell.cell.likelihood].cell

    def likelihood_after_activation(cell, a, x, parameter):
        y, slope = activation(a, parameter)
        t, dy, dx = likelihood(y, x)
        return t, dy * slope, dx

    return likelihood_after_activation


def activate(cell, which, a, parameter):
    """Return (f(a), f'(a)) for hidden activation number `which`."""


@overload(activate, jit_options={"forceinline": True})
def activate_by_number(cell, which, a, parameter):
    """Compile a choice between the activations that occur."""
    last, *others = (activations.BY_NAME[name] for name in reversed(cell.cell.hidden))

    def choose(cell, which, a, parameter):
        return last(a, parameter)

    for number in range(len(others) - 1, -1, -1):
        choose = _choice(number, others[len(others) - 1 - number], choose)
    return choose


def _choice(number, activation, rest):
    rest = inline(rest)

    def choose(cell, which, a, parameter):
        if which == number:
            return activation(a, parameter)
        return rest(cell, which, a, parameter)

    return choose


def only_where(condition):
    """Make a kernel, whose second argument is the cell, do nothing for other cells, which then need not compile it."""

    def decorate(kernel):
        def run(*arguments):
            """Stand for the kernel."""

        @overload(run)
        def run_or_not(*arguments):
            if condition(arguments[1].cell):
                return lambda *arguments: kernel(*arguments)
            return lambda *arguments: None

        return run

    return decorate
