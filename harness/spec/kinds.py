"""What all layer kinds have in common: shapes, parameters, and the protocol that each kind fulfils."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

Shape = tuple[int, ...]


class ShapeError(ValueError):
    """A layer cannot take the shape that reaches it; the message says what it takes."""


@dataclass(frozen=True)
class Param:
    """One trainable array: its canonical shape and how it starts.

    `fan_in` and `fan_out` count the connections of one unit, as the Glorot and He initialisers need them.
    """

    shape: Shape
    init: str
    fan_in: int = 0
    fan_out: int = 0

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class LayerKind(Protocol):
    """What every layer kind knows. Shapes are of one sample."""

    kind: ClassVar[str]

    def out_shape(self, shape: Shape) -> Shape:
        """The output's shape for an input of `shape`; raises ShapeError."""
        ...

    def params(self, shape: Shape) -> dict[str, Param]:
        """Parameters by name, in canonical layout, for an input of `shape`."""
        ...

    def flops(self, shape: Shape) -> int:
        """Operations of one forward pass of one sample: matrix products only, 2 per multiply-add."""
        ...
