"""Layer kinds that work on features: dense, activation, dropout, flatten, reshape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from harness.core.network.layer_base import Initialiser, Positive, ShapeError, TimeAxis
from harness.core.network.parameters import Param, Shape
from harness.core.validation import Range

Function = Literal["linear", "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu", "softmax"]


@dataclass(frozen=True)
class Dense:
    """y = x W + b on the last axis; kernel `(in, out)`, bias `(out,)`."""

    kind: ClassVar[str] = "dense"
    time_axis: ClassVar[TimeAxis] = "kept"
    units: Positive
    use_bias: bool = True
    kernel_init: Initialiser = "glorot_uniform"

    def out_shape(self, shape: Shape) -> Shape:
        if not shape:
            raise ShapeError("needs at least one axis of features")
        return (*shape[:-1], self.units)

    def params(self, shape: Shape) -> dict[str, Param]:
        features = shape[-1]
        kernel = Param((features, self.units), self.kernel_init, features, self.units)
        return {"kernel": kernel} | ({"bias": Param((self.units,), "zeros")} if self.use_bias else {})

    def flops(self, shape: Shape) -> int:
        return 2 * math.prod(shape) * self.units


@dataclass(frozen=True)
class Activation:
    """An element-wise function (softmax: over the last axis). GELU is exact, by erf.

    The slope of leaky ReLU is a field because the frameworks' defaults differ (0.3 and 0.01).
    """

    kind: ClassVar[str] = "activation"
    time_axis: ClassVar[TimeAxis] = "kept"
    function: Function
    slope: Annotated[float, Range(min=0.0)] = 0.01

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def params(self, shape: Shape) -> dict[str, Param]:
        return {}

    def flops(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class Dropout:
    """Zeroes each element with probability `rate` while training and scales the rest by 1 / (1 - rate).

    Source: Srivastava et al. 2014, in the inverted form that both frameworks use.
    """

    kind: ClassVar[str] = "dropout"
    time_axis: ClassVar[TimeAxis] = "kept"
    rate: Annotated[float, Range(min=0.0, max=1.0, exclusive_max=True)]

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def params(self, shape: Shape) -> dict[str, Param]:
        return {}

    def flops(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class Flatten:
    """Flattens all axes of a sample into one, in row-major order of the canonical layout (H, W, C).

    Padded steps of sequences become zeros, whatever earlier layers computed for them.
    """

    kind: ClassVar[str] = "flatten"
    time_axis: ClassVar[TimeAxis] = "ended"

    def out_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def params(self, shape: Shape) -> dict[str, Param]:
        return {}

    def flops(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class Reshape:
    """The same values in another shape, in row-major order; one axis may be -1, which is inferred."""

    kind: ClassVar[str] = "reshape"
    time_axis: ClassVar[TimeAxis] = "refused"
    shape: tuple[int, ...]

    def out_shape(self, shape: Shape) -> Shape:
        size, fixed_size = math.prod(shape), math.prod(n for n in self.shape if n != -1)
        free = self.shape.count(-1)
        if free > 1 or fixed_size <= 0 or size % fixed_size or (not free and fixed_size != size):
            raise ShapeError(f"can't reshape {size} numbers to {self.shape}")
        return tuple(size // fixed_size if n == -1 else n for n in self.shape)

    def params(self, shape: Shape) -> dict[str, Param]:
        return {}

    def flops(self, shape: Shape) -> int:
        return 0
