"""The layer kinds, all of them, and those that only become concrete when a network meets its data.

The canonical layout of every parameter is decided in these modules and nowhere else. It follows Keras' habit,
which has fewer free parameters than PyTorch's (a dense kernel is `(in, out)`, one bias for an LSTM); adapters
hold only the mapping to and from their framework's own layout. A new kind is one dataclass here and one case
in each adapter: `Concrete` is a union, so the type checker names the adapters that lack it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from harness.core.network.attention import BatchNorm, Embedding, LayerNorm, Positions, SelfAttention
from harness.core.network.basic import Activation, Dense, Dropout, Flatten, Reshape
from harness.core.network.convolution import Conv1D, Conv2D, GlobalPool, Pool, Upsample
from harness.core.network.layer_base import Initialiser, Input, Positive, Shape, ShapeError
from harness.core.network.recurrent import GRU, LSTM, SimpleRNN


@dataclass(frozen=True)
class Residual:
    """x + body(x); with a `shortcut`, shortcut(x) + body(x). He et al. 2016.

    Both are lists of layers. What they give must have one shape.
    """

    kind: ClassVar[str] = "residual"
    body: tuple[Any, ...]
    shortcut: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ToSequence:
    """Whatever the data are, as a sequence `(steps, features)`.

    Token ids go through an embedding of `units`. An image gives its rows as steps; a vector one step a
    number. With `project`, these too come out with `units` features, by a dense layer.
    """

    kind: ClassVar[str] = "to_sequence"
    units: Positive
    project: bool = True
    kernel_init: Initialiser = "glorot_uniform"

    def concrete(self, shape: Shape, given: Input) -> list[tuple[str, Concrete]]:
        """The layers that it becomes for an input, each with what to add to its path."""
        if given.vocabulary:
            return [("", Embedding(self.units, given.vocabulary))]
        if len(shape) not in (1, 2, 3):
            raise ShapeError("takes vectors, sequences or images")
        steps: list[tuple[str, Concrete]] = []
        if len(shape) == 1:
            steps = [(".steps", Reshape((shape[0], 1)))]
        if len(shape) == 3:
            steps = [(".steps", Reshape((shape[0], shape[1] * shape[2])))]
        return [*steps, *([("", Dense(self.units, True, self.kernel_init))] if self.project else [])]


@dataclass(frozen=True)
class ToImage:
    """Whatever has rows and columns, as an image `(height, width, channels)`.

    A sequence is none: a window over its features would depend on the order that they happen to have. Where
    it shall be one all the same (a spectrogram), a `reshape` says so.
    """

    kind: ClassVar[str] = "to_image"

    def concrete(self, shape: Shape, given: Input) -> list[tuple[str, Concrete]]:
        """The layers that it becomes for an input, each with what to add to its path."""
        if given.sequence:
            layers = "conv1d, rnn, lstm, gru or attention"
            raise ShapeError(f"takes images, and the data are sequences, which are for {layers}")
        if len(shape) not in (2, 3):
            raise ShapeError("takes images (height, width) or (height, width, channels)")
        return [("", Reshape((*shape, 1)))] if len(shape) == 2 else []


@dataclass(frozen=True)
class Output:
    """The last layer: a dense one of the size that the task and its loss need. It gives logits."""

    kind: ClassVar[str] = "output"
    use_bias: bool = True
    kernel_init: Initialiser = "glorot_uniform"

    def concrete(self, shape: Shape, outputs: int) -> list[tuple[str, Concrete]]:
        """The layers that it becomes for a task, each with what to add to its path."""
        if len(shape) != 1:
            raise ShapeError("takes one axis; put a 'flatten' or 'global_pool' before it")
        return [("", Dense(outputs, self.use_bias, self.kernel_init))]


@dataclass(frozen=True)
class Reconstruction:
    """The last layer of an autoencoder: the network's task is to give back its own input, flattened.

    With `dense`, a dense layer of the input's size; without, what arrives must have that size already.
    """

    kind: ClassVar[str] = "reconstruction"
    dense: bool = True
    use_bias: bool = True
    kernel_init: Initialiser = "glorot_uniform"

    def concrete(self, shape: Shape, outputs: int) -> list[tuple[str, Concrete]]:
        """The layers that it becomes for a task, each with what to add to its path."""
        flat: list[tuple[str, Concrete]] = [(".flatten", Flatten())] if len(shape) != 1 else []
        if self.dense:
            return [*flat, ("", Dense(outputs, self.use_bias, self.kernel_init))]
        if math.prod(shape) != outputs:
            raise ShapeError(f"without `dense` it takes {outputs} numbers, the size of the input")
        return flat


Concrete = (
    Dense
    | Activation
    | Dropout
    | Flatten
    | Reshape
    | Conv2D
    | Conv1D
    | Pool
    | GlobalPool
    | Upsample
    | SimpleRNN
    | LSTM
    | GRU
    | Embedding
    | Positions
    | SelfAttention
    | LayerNorm
    | BatchNorm
)
"""What an adapter builds, besides `Residual`: `match` over it, and the type checker names what is missing."""

Adapting = ToSequence | ToImage
Final = Output | Reconstruction

Layer = Concrete | Residual | Adapting | Final
"""What a layer tree may contain, besides `repeat`, which is unrolled when the tree is read."""


def concrete(
    layer: Concrete | Adapting | Final, shape: Shape, given: Input, outputs: int
) -> list[tuple[str, Concrete]]:
    """What a layer becomes at its place: mostly itself. Raises ShapeError."""
    match layer:
        case ToSequence() | ToImage():
            return layer.concrete(shape, given)
        case Output() | Reconstruction():
            return layer.concrete(shape, outputs)
        case Embedding():
            return [("", replace(layer, vocabulary=given.vocabulary))]
        case _:
            return [("", layer)]
