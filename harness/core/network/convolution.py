"""Layer kinds that slide a window over an image `(H, W, C)` or a sequence `(L, C)`, or resize one.

`same` padding with a stride above 1 is refused: TensorFlow pads it unevenly, and PyTorch does not support it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.core.network.layer_base import Initialiser, Positive, ShapeError, TimeAxis, need_rank, window
from harness.core.network.parameters import Param, Shape


@dataclass(frozen=True)
class Conv2D:
    """Cross-correlation of an image with filters; kernel `(k, k, in, filters)` (HWIO), bias `(filters,)`."""

    kind: ClassVar[str] = "conv2d"
    time_axis: ClassVar[TimeAxis] = "refused"
    filters: Positive
    kernel_size: Positive = 3
    strides: Positive = 1
    padding: Literal["valid", "same"] = "same"
    use_bias: bool = True
    kernel_init: Initialiser = "glorot_uniform"

    def out_shape(self, shape: Shape) -> Shape:
        need_rank(
            shape, 3, "images (height, width, channels); `to_image` makes one, `conv1d` takes sequences"
        )
        _check_strides(self.strides, self.padding)
        sizes = (window(self.kernel_size, n, self.strides, self.padding) for n in shape[:2])
        return (*sizes, self.filters)

    def params(self, shape: Shape) -> dict[str, Param]:
        return _kernel((self.kernel_size,) * 2, shape[-1], self.filters, self.kernel_init, self.use_bias)

    def flops(self, shape: Shape) -> int:
        return 2 * math.prod(self.out_shape(shape)) * self.kernel_size**2 * shape[-1]


@dataclass(frozen=True)
class Conv1D:
    """Cross-correlation along the steps of a sequence; kernel `(k, in, filters)`, bias `(filters,)`.

    `causal` pads at the front only, so that an output depends on no later step.
    """

    kind: ClassVar[str] = "conv1d"
    time_axis: ClassVar[TimeAxis] = "refused"
    filters: Positive
    kernel_size: Positive = 3
    strides: Positive = 1
    padding: Literal["valid", "same", "causal"] = "same"
    use_bias: bool = True
    kernel_init: Initialiser = "glorot_uniform"

    def out_shape(self, shape: Shape) -> Shape:
        need_rank(shape, 2, "sequences (steps, features); `to_sequence` makes one")
        _check_strides(self.strides, self.padding)
        return (window(self.kernel_size, shape[0], self.strides, self.padding), self.filters)

    def params(self, shape: Shape) -> dict[str, Param]:
        return _kernel((self.kernel_size,), shape[-1], self.filters, self.kernel_init, self.use_bias)

    def flops(self, shape: Shape) -> int:
        return 2 * math.prod(self.out_shape(shape)) * self.kernel_size * shape[-1]


@dataclass(frozen=True)
class Pool:
    """The maximum or the mean of each window of `size`, which is also the stride; no padding."""

    kind: ClassVar[str] = "pool"
    time_axis: ClassVar[TimeAxis] = "refused"
    mode: Literal["max", "average"] = "max"
    size: Positive = 2

    def out_shape(self, shape: Shape) -> Shape:
        if len(shape) not in (2, 3):
            raise ShapeError("takes images (height, width, channels) or sequences (steps, features)")
        return (*(window(self.size, n, self.size, "valid") for n in shape[:-1]), shape[-1])

    def params(self, shape: Shape) -> dict[str, Param]:
        return {}

    def flops(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class GlobalPool:
    """The maximum or the mean over all positions; for padded sequences, over the valid steps."""

    kind: ClassVar[str] = "global_pool"
    time_axis: ClassVar[TimeAxis] = "ended"
    mode: Literal["max", "average"] = "average"

    def out_shape(self, shape: Shape) -> Shape:
        if len(shape) not in (2, 3):
            raise ShapeError("takes images (height, width, channels) or sequences (steps, features)")
        return shape[-1:]

    def params(self, shape: Shape) -> dict[str, Param]:
        return {}

    def flops(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class Upsample:
    """Repeats every pixel or step `size` times along each spatial axis (nearest neighbour), for decoders."""

    kind: ClassVar[str] = "upsample"
    time_axis: ClassVar[TimeAxis] = "refused"
    size: Positive = 2

    def out_shape(self, shape: Shape) -> Shape:
        if len(shape) not in (2, 3):
            raise ShapeError("takes images (height, width, channels) or sequences (steps, features)")
        return (*(self.size * n for n in shape[:-1]), shape[-1])

    def params(self, shape: Shape) -> dict[str, Param]:
        return {}

    def flops(self, shape: Shape) -> int:
        return 0


def _check_strides(strides: int, padding: str) -> None:
    if strides > 1 and padding != "valid":
        raise ShapeError(
            f"can't have padding {padding!r} with strides {strides}: use 'valid', or pool after it"
        )


def _kernel(sizes: Shape, channels: int, filters: int, init: str, use_bias: bool) -> dict[str, Param]:
    area = math.prod(sizes)
    kernel = Param((*sizes, channels, filters), init, area * channels, area * filters)
    return {"kernel": kernel} | ({"bias": Param((filters,), "zeros")} if use_bias else {})
