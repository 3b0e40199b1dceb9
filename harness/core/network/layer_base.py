"""Common parts of all layer kinds: shapes, parameters, inputs, shape errors.

A layer kind is a frozen dataclass with class variables `kind` and `time_axis` and three methods on the shape
of one sample:

- `out_shape(shape)`: the output's shape; raises ShapeError,
- `params(shape)`: the parameters by name, in canonical layout,
- `flops(shape)`: the operations of one forward pass of one sample: matrix products only, 2 per multiply-add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from harness.core.network.initialisers import INITIALISERS
from harness.core.network.parameters import Shape
from harness.core.validation import OneOf, Range

Positive = Annotated[int, Range(min=1)]
Initialiser = Annotated[str, OneOf(tuple(INITIALISERS))]

TimeAxis = Literal["kept", "ended", "refused"]
"""How a layer treats the axis of steps of padded sequences: keeps it, reduces it (to a last state, a mean),
or refuses padded input."""


class ShapeError(ValueError):
    """A layer does not accept the shape of its input; the message says what it accepts."""


@dataclass(frozen=True)
class Input:
    """The description of one sample: its shape, and the meaning of its numbers.

    `vocabulary`: the number of different token ids (0: the numbers are measurements; id 0 is padding).
    `lengths`: samples are sequences of unequal length, padded at the end to `shape[0]` steps. `sequence`: the
    first axis is time, (steps, features) or (steps,) of ids. An image has no such axis, though its rows can
    be read as one.
    """

    shape: Shape
    vocabulary: int = 0
    lengths: bool = False
    sequence: bool = False


def need_rank(shape: Shape, rank: int, axes: str) -> None:
    """Raise ShapeError unless the shape has `rank` axes; `axes` describes them."""
    if len(shape) != rank:
        raise ShapeError(f"takes {axes}")


def window(size: int, length: int, stride: int, padding: str) -> int:
    """Return the number of positions of a window of `size` along an axis; raises ShapeError if none fits."""
    if padding != "valid":
        return length  # the layer kinds ensure a stride of 1
    if size > length:
        raise ShapeError(f"has a window of {size}, larger than its input of {length}")
    return (length - size) // stride + 1
