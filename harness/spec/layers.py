"""The layer kinds. The canonical layout of every parameter is decided here and nowhere else.

It follows Keras' habit, which has fewer free parameters than PyTorch's (a dense kernel is `(in, out)`);
adapters hold only the mapping to and from their framework's own layout. A new kind is one dataclass here and
one case in each adapter: `Concrete` is a union, so the type checker names the adapters that lack it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from harness.parse import OneOf, Range
from harness.spec.kinds import Param, Shape, ShapeError
from harness.weights import INITIALISERS

Positive = Annotated[int, Range(min=1)]
Initialiser = Annotated[str, OneOf(tuple(INITIALISERS))]
Function = Literal["linear", "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu", "softmax"]


@dataclass(frozen=True)
class Dense:
    """y = x W + b on the last axis; kernel `(in, out)`, bias `(out,)`."""

    kind: ClassVar[str] = "dense"
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
    """An element-wise function (softmax: over the last axis). GELU is the exact one, by erf.

    The slope of leaky ReLU is a number of its own because the frameworks' defaults differ (0.3 and 0.01).
    """

    kind: ClassVar[str] = "activation"
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
    rate: Annotated[float, Range(min=0.0, max=1.0, exclusive_max=True)]

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def params(self, shape: Shape) -> dict[str, Param]:
        return {}

    def flops(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class Flatten:
    """All axes of a sample into one, in row-major order of the canonical layout."""

    kind: ClassVar[str] = "flatten"

    def out_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def params(self, shape: Shape) -> dict[str, Param]:
        return {}

    def flops(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class Output:
    """The last layer: a dense one of the size that the task and its loss need. It gives logits."""

    kind: ClassVar[str] = "output"
    use_bias: bool = True
    kernel_init: Initialiser = "glorot_uniform"

    def sized(self, outputs: int) -> Dense:
        """The dense layer that it becomes."""
        return Dense(outputs, self.use_bias, self.kernel_init)


Concrete = Dense | Activation | Dropout | Flatten
"""What an adapter has to build: `match` over it, and the type checker names a missing case."""

Layer = Concrete | Output
"""What a layer tree may contain, besides `repeat`, which is unrolled when the tree is read."""
