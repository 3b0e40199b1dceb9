"""Layer kinds of transformers: embedding, positions, self-attention, and the two normalisations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from harness.core.network.layer_base import Initialiser, Positive, ShapeError, TimeAxis, need_rank
from harness.core.network.parameters import Param, Shape
from harness.core.validation import Range

Epsilon = Annotated[float, Range(min=0.0, exclusive_min=True)]


@dataclass(frozen=True)
class Embedding:
    """A vector for each token id: `(steps,)` ids to `(steps, units)`; table `(vocabulary, units)`.

    The vocabulary comes from the data. The table is initialised uniformly in ±0.05, as in Keras.
    """

    kind: ClassVar[str] = "embedding"
    time_axis: ClassVar[TimeAxis] = "kept"
    units: Positive
    vocabulary: int = 0

    def out_shape(self, shape: Shape) -> Shape:
        need_rank(shape, 1, "sequences of token ids")
        if self.vocabulary < 1:
            raise ShapeError("takes token ids, and the data are measurements")
        return (shape[0], self.units)

    def params(self, shape: Shape) -> dict[str, Param]:
        return {"table": Param((self.vocabulary, self.units), "uniform_0.05")}

    def flops(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class Positions:
    """Adds a positional encoding to each step: learned, table `(steps, features)`, or sinusoidal.

    Sinusoidal: Vaswani et al. 2017, section 3.5; even features sine, odd ones cosine.
    """

    kind: ClassVar[str] = "positions"
    time_axis: ClassVar[TimeAxis] = "kept"
    encoding: Literal["learned", "sinusoidal"] = "learned"

    def out_shape(self, shape: Shape) -> Shape:
        need_rank(shape, 2, "sequences (steps, features)")
        return shape

    def params(self, shape: Shape) -> dict[str, Param]:
        return {"table": Param(shape, "uniform_0.05")} if self.encoding == "learned" else {}

    def flops(self, shape: Shape) -> int:
        return 0


def sinusoids(shape: Shape) -> list[list[float]]:
    """Compute the sinusoidal table `[steps, features]` in float64.

    Uses scalar functions, because NumPy's vectorised ones differ between processors.
    """
    steps, features = shape
    rates = [10000.0 ** (-2 * (i // 2) / features) for i in range(features)]
    return [
        [math.sin(t * rate) if i % 2 == 0 else math.cos(t * rate) for i, rate in enumerate(rates)]
        for t in range(steps)
    ]


@dataclass(frozen=True)
class SelfAttention:
    """Multi-head scaled dot-product self-attention, Vaswani et al. 2017, section 3.2.

    query, key, value kernels `(d, heads, k)` with k = d / heads, query and value biases `(heads, k)`,
    output_kernel `(heads, k, d)`, output_bias `(d,)`. The key has no bias: softmax is invariant to it, so its
    gradient is zero in exact arithmetic and noise in practice. Padded steps are not attended to.
    """

    kind: ClassVar[str] = "attention"
    time_axis: ClassVar[TimeAxis] = "kept"
    heads: Positive
    causal: bool = False
    kernel_init: Initialiser = "glorot_uniform"

    def out_shape(self, shape: Shape) -> Shape:
        need_rank(shape, 2, "sequences (steps, features)")
        if shape[-1] % self.heads:
            raise ShapeError(f"can't share {shape[-1]} features between {self.heads} heads")
        return shape

    def params(self, shape: Shape) -> dict[str, Param]:
        width = shape[-1]
        size = width // self.heads
        into = Param((width, self.heads, size), self.kernel_init, width, width)
        bias = Param((self.heads, size), "zeros")
        return {
            "query_kernel": into,
            "query_bias": bias,
            "key_kernel": into,
            "value_kernel": into,
            "value_bias": bias,
            "output_kernel": Param((self.heads, size, width), self.kernel_init, width, width),
            "output_bias": Param((width,), "zeros"),
        }

    def flops(self, shape: Shape) -> int:
        steps, width = shape
        projections = 4 * 2 * steps * width * width
        return projections + 2 * 2 * steps * steps * width


@dataclass(frozen=True)
class LayerNorm:
    """Ba et al. 2016, over the last axis; gamma and beta `(features,)`. The epsilon is inside the root."""

    kind: ClassVar[str] = "layer_norm"
    time_axis: ClassVar[TimeAxis] = "kept"
    epsilon: Epsilon = 1e-5

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def params(self, shape: Shape) -> dict[str, Param]:
        return {"gamma": Param(shape[-1:], "ones"), "beta": Param(shape[-1:], "zeros")}

    def flops(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class BatchNorm:
    """Ioffe & Szegedy 2015, over the batch and all positions, for each channel of the last axis.

    gamma, beta, moving_mean, moving_variance `(channels,)`. `momentum` is the share of the running statistics
    that remains at each step (Keras' convention; PyTorch's is one minus that). They are updated with the
    biased variance of the batch, which also normalises it (PyTorch's own layer uses the unbiased one here).
    """

    kind: ClassVar[str] = "batch_norm"
    time_axis: ClassVar[TimeAxis] = "refused"
    epsilon: Epsilon = 1e-3
    momentum: Annotated[float, Range(min=0.0, max=1.0)] = 0.9

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def params(self, shape: Shape) -> dict[str, Param]:
        channels = shape[-1:]
        return {
            "gamma": Param(channels, "ones"),
            "beta": Param(channels, "zeros"),
            "moving_mean": Param(channels, "zeros", trainable=False),
            "moving_variance": Param(channels, "ones", trainable=False),
        }

    def flops(self, shape: Shape) -> int:
        return 0
