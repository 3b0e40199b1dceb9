"""What all layer kinds have in common: shapes, parameters, and the protocol that each kind fulfils."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

from harness.core.network.initialisers import INITIALISERS
from harness.core.validation import OneOf, Range

Shape = tuple[int, ...]
Positive = Annotated[int, Range(min=1)]
Initialiser = Annotated[str, OneOf(tuple(INITIALISERS))]

TimeAxis = Literal["kept", "ended", "refused"]
"""What a layer does to the axis of steps of sequences of unequal length: leaves it as it is, makes an end of
it (a last state, a mean), or can't have the padding in it."""


class ShapeError(ValueError):
    """A layer cannot take the shape that reaches it; the message says what it takes."""


@dataclass(frozen=True)
class Input:
    """What one sample is: its shape, and what its numbers mean.

    `vocabulary` is the number of different token ids (0: the numbers are measurements; id 0 is padding).
    `lengths` says that samples are sequences of unequal length, padded at the end to `shape[0]` steps.
    `sequence` says that the first axis has steps, one after the other: (steps, features), or (steps,) of ids.
    An image has no such axis, though its rows can be read as one.
    """

    shape: Shape
    vocabulary: int = 0
    lengths: bool = False
    sequence: bool = False


@dataclass(frozen=True)
class Param:
    """One array of a layer: its canonical shape and how it starts.

    `fan_in` and `fan_out` count the connections of one unit, as the Glorot and He initialisers need them.
    What is not `trainable` is state: the running statistics of a BatchNorm.
    """

    shape: Shape
    init: str
    fan_in: int = 0
    fan_out: int = 0
    trainable: bool = True

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class LayerKind(Protocol):
    """What every layer kind knows. Shapes are of one sample."""

    kind: ClassVar[str]
    time_axis: ClassVar[TimeAxis]

    def out_shape(self, shape: Shape) -> Shape:
        """The output's shape for an input of `shape`; raises ShapeError."""
        ...

    def params(self, shape: Shape) -> dict[str, Param]:
        """Parameters by name, in canonical layout, for an input of `shape`."""
        ...

    def flops(self, shape: Shape) -> int:
        """Operations of one forward pass of one sample: matrix products only, 2 per multiply-add."""
        ...


def need_rank(shape: Shape, rank: int, axes: str) -> None:
    """Raise ShapeError unless the shape has so many axes."""
    if len(shape) != rank:
        raise ShapeError(f"takes {axes}")


def window(size: int, length: int, stride: int, padding: str) -> int:
    """The number of places of a window of `size` along an axis; raises ShapeError where it does not fit."""
    if padding != "valid":
        return length  # with stride 1, which the layer kinds see to
    if size > length:
        raise ShapeError(f"has a window of {size}, larger than the {length} that are left")
    return (length - size) // stride + 1
