"""The parameters of layers: their canonical shapes, and what their initialisers need to know."""

from __future__ import annotations

import math
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Param:
    """One array of a layer: its canonical shape and its initialiser.

    `fan_in` and `fan_out` count the connections of one unit, for the Glorot and He initialisers. An array
    that is not `trainable` is state: the running statistics of a BatchNorm.
    """

    shape: Shape
    init: str
    fan_in: int = 0
    fan_out: int = 0
    trainable: bool = True

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)
