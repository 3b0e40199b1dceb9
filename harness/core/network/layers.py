"""All layer kinds, including those that become concrete only when a network is resolved for its data.

These modules alone define the canonical layout of every parameter. It follows Keras' conventions, which have
fewer free parameters than PyTorch's (a dense kernel is `(in, out)`, an LSTM has one bias); adapters contain
only the mapping to and from their framework's layout. A new kind is one dataclass here and one case in each
adapter: `Concrete` is a union, so the type checker names the adapters that lack it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from harness.core.network.attention import BatchNorm, Embedding, LayerNorm, Positions, SelfAttention
from harness.core.network.basic import Activation, Dense, Dropout, Flatten, Reshape
from harness.core.network.convolution import Conv1D, Conv2D, GlobalPool, Pool, Upsample
from harness.core.network.layer_base import Initialiser, Input, Positive, ShapeError
from harness.core.network.parameters import Shape
from harness.core.network.recurrent import GRU, LSTM, SimpleRNN


@dataclass(frozen=True)
class Residual:
    """x + body(x); with a `shortcut`, shortcut(x) + body(x). He et al. 2016.

    Both are lists of layers, whose outputs must have the same shape.
    """

    kind: ClassVar[str] = "residual"
    body: tuple[Any, ...]
    shortcut: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ToSequence:
    """Converts any data to a sequence `(steps, features)`.

    Token ids pass through an embedding of `units`. The steps of an image are its rows; those of a vector are
    its numbers. With `project`, a dense layer gives these `units` features too.
    """

    kind: ClassVar[str] = "to_sequence"
    units: Positive
    project: bool = True
    kernel_init: Initialiser = "glorot_uniform"

    def concrete(self, shape: Shape, sample: Input) -> list[tuple[str, Concrete]]:
        """Return the layers to build for an input, each with a suffix for its path; raises ShapeError."""
        if sample.vocabulary:
            return [("", Embedding(self.units, sample.vocabulary))]
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
    """Converts data with rows and columns to an image `(height, width, channels)`.

    Sequences are refused: a window over their features would depend on an arbitrary order. To treat one as an
    image all the same (a spectrogram), put a `reshape` first.
    """

    kind: ClassVar[str] = "to_image"

    def concrete(self, shape: Shape, sample: Input) -> list[tuple[str, Concrete]]:
        """Return the layers to build for an input, each with a suffix for its path; raises ShapeError."""
        if sample.sequence:
            layers = "conv1d, rnn, lstm, gru or attention"
            raise ShapeError(f"takes images, and the data are sequences, which are for {layers}")
        if len(shape) not in (2, 3):
            raise ShapeError("takes images (height, width) or (height, width, channels)")
        return [("", Reshape((*shape, 1)))] if len(shape) == 2 else []


@dataclass(frozen=True)
class Output:
    """The last layer: a dense layer of the size that the task and its loss need. Its outputs are logits."""

    kind: ClassVar[str] = "output"
    use_bias: bool = True
    kernel_init: Initialiser = "glorot_uniform"

    def concrete(self, shape: Shape, outputs: int) -> list[tuple[str, Concrete]]:
        """Return the layers to build for a task, each with a suffix for its path; raises ShapeError."""
        if len(shape) != 1:
            raise ShapeError("takes one axis; put a 'flatten' or 'global_pool' before it")
        return [("", Dense(outputs, self.use_bias, self.kernel_init))]


@dataclass(frozen=True)
class Reconstruction:
    """The last layer of an autoencoder, whose task is to reconstruct its own input, flattened.

    With `dense`, a dense layer of the input's size; without, its input must already have that size.
    """

    kind: ClassVar[str] = "reconstruction"
    dense: bool = True
    use_bias: bool = True
    kernel_init: Initialiser = "glorot_uniform"

    def concrete(self, shape: Shape, outputs: int) -> list[tuple[str, Concrete]]:
        """Return the layers to build for a task, each with a suffix for its path; raises ShapeError."""
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
"""The kinds that an adapter builds, besides `Residual`; the type checker finds kinds missing in a `match`."""

InputConversion = ToSequence | ToImage
FinalLayer = Output | Reconstruction

Layer = Concrete | Residual | InputConversion | FinalLayer
"""The kinds in a layer tree, besides `repeat`, which is unrolled when the tree is read."""


def concrete(
    layer: Concrete | InputConversion | FinalLayer, shape: Shape, sample: Input, outputs: int
) -> list[tuple[str, Concrete]]:
    """Return the layers to build for a layer, each with a suffix for its path; raises ShapeError.

    `shape` is that of the layer's input, `sample` describes the network's input.
    """
    match layer:
        case ToSequence() | ToImage():
            return layer.concrete(shape, sample)
        case Output() | Reconstruction():
            return layer.concrete(shape, outputs)
        case Embedding():
            return [("", replace(layer, vocabulary=sample.vocabulary))]
        case _:
            return [("", layer)]
