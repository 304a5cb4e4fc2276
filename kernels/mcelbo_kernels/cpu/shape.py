"""The shape of a register tile, a static argument: one that has no data and whose fields kernels see as constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding
from numba import types
from numba.core import config
from numba.extending import NativeValue, models, overload, register_model, typeof_impl, unbox

from mcelbo_kernels.numerics.lanes import Vector


@dataclass(frozen=True, slots=True)
class Shape:
    """A tile holds `rows` samples of `columns` vectors of `lanes` pixels each, scalars of type `real`."""

    real: str
    rows: int
    columns: int
    lanes: int

    @property
    def width(self) -> int:
        """Pixels in a row of the tile."""
        return self.columns * self.lanes

    @property
    def steps(self) -> int:
        """Outer products that are added without a loop, a divisor of the width.

        A few take a tenth off the time of a product; of many, LLVM hoists the loads until the tile spills.
        """
        return min(8, self.width)


def compiled_for(feature: str) -> bool:
    """Tell whether numba compiles for a feature: one that the processor has, or that NUMBA_CPU_FEATURES names."""
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    return bool(llvmlite.binding.get_host_cpu_features().get(feature))


@cache
def host_shape(real: str) -> Shape:
    """Return the tile that fills the vector registers that numba compiles for and leaves room for operands."""
    if compiled_for("avx512f"):
        rows, columns, register = 12, 2, 64
    elif compiled_for("avx2"):
        rows, columns, register = 6, 2, 32
    else:
        rows, columns, register = 8, 2, 16
    return Shape(real, rows, columns, register // (4 if real == "float32" else 8))


class ShapeType(types.Type):
    """The numba type of a `Shape`; it carries the fields."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        super().__init__(name=repr(shape))

    @property
    def vector(self) -> Vector:
        """The type of one vector of a tile."""
        return Vector(getattr(types, self.shape.real), self.shape.lanes)


def register_static(value_class: type, type_class: type) -> None:
    """Let instances of `value_class` be passed to kernels: typed `type_class(value)`, no data at all."""
    register_model(type_class)(models.OpaqueModel)
    # the name of a type takes longer to write than a value to look up
    known = cache(type_class)

    @typeof_impl.register(value_class)
    def type_of(value: Any, context: Any) -> types.Type:
        return known(value)

    @unbox(type_class)
    def pass_nothing(kind: types.Type, value: Any, context: Any) -> NativeValue:
        return NativeValue(context.context.get_dummy_value())


register_static(Shape, ShapeType)


def static(field: Callable[[Any], Any]) -> Callable[..., Any]:
    """Make a function of a static argument's type that kernels see as a constant."""

    def read(argument: Any) -> Any:
        """Stand for `field` in the source of a kernel."""

    @overload(read)
    def read_from_type(argument):
        value = field(argument)
        return lambda argument: value

    return read


rows_of = static(lambda kind: kind.shape.rows)
width_of = static(lambda kind: kind.shape.width)
steps_of = static(lambda kind: kind.shape.steps)
lanes_of = static(lambda kind: kind.shape.lanes)
columns_of = static(lambda kind: kind.shape.columns)
