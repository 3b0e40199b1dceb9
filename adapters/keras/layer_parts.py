"""What the layer modules share: how a layer is built, applied to a tensor, and where its weights are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import keras

from harness.core.adapter import Storage


class Padding(NamedTuple):
    """The padding of a batch of sequences: `lengths` int32 `[batch]`, `valid` bool `[batch, steps]`."""

    lengths: Any
    valid: Any


Compiler = Literal["xla", "graph", "none"]

TUNED_LAYERS = "adapters.keras.backends.jax.tuned_layers"  # imported on demand: other backends have no JAX
EXACT_LAYERS = ("Conv1D", "Conv2D", "Flatten", "MaxPooling1D", "MaxPooling2D")
"""The tuned layers that mixed precision uses too."""


@dataclass(frozen=True)
class BuildOptions:
    """How layers are built.

    `precision` is the dtype of the weights; with `mixed`, Keras' policy lets layers compute in bfloat16.
    `compiler` is what compiles the adapter's own training step: XLA, TensorFlow as a graph, or nothing. It is
    "none" for `fit` as well, whose layers are Keras' defaults.
    """

    precision: Storage
    compiler: Compiler
    device: str
    mixed: bool = False

    def layer_class(self, name: str) -> Any:
        """The tuned layer class of this name if one applies, else Keras' own."""
        return self.tuned(name) or getattr(keras.layers, name)

    def tuned(self, name: str) -> Any:
        """The tuned layer class or activation function of this name, or None if there is none for this
        backend, device and precision. Mixed precision uses only those whose gradients contain no sums."""
        applies = self.compiler == "xla" and self.device == "cpu" and keras.backend.backend() == "jax"
        if applies and (not self.mixed or name in EXACT_LAYERS):
            return getattr(importlib.import_module(TUNED_LAYERS), name, None)
        return None


@dataclass(frozen=True, eq=False)
class BuiltLayer:
    """A layer of the network, built with Keras.

    `apply` takes the input tensor and, for padded sequences, the padding. `weights` returns the variables by
    the names of their canonical parameters, once the layer has been applied. `dropout` is the layer if it
    draws masks. `kernel` says how a recurrent layer runs its steps.
    """

    apply: Callable[[Any, Padding | None], Any]
    weights: Callable[[], Mapping[str, Any]] = field(default=dict)
    dropout: Any = None
    kernel: str = ""


def plain(layer: Any, *names: str) -> BuiltLayer:
    """A Keras layer that ignores padding and stores its weights in attributes of these names."""
    return BuiltLayer(lambda x, _: layer(x), lambda: {name: getattr(layer, name) for name in names})


def masked(layer: Any) -> BuiltLayer:
    """A layer without weights that is called with `(x, valid)`."""
    return BuiltLayer(lambda x, padding: layer(x, require_padding(padding).valid))


def require_padding(padding: Padding | None) -> Padding:
    """The padding, which exists for every node that is `masked`."""
    assert padding is not None, "the network has a masked layer and no lengths"
    return padding


class ValidSteps(keras.layers.Layer):  # type: ignore[misc]
    """Maps lengths `[batch]` to the mask of valid steps, bool `[batch, steps]`."""

    def __init__(self, steps: int) -> None:
        super().__init__(name="valid")
        self.steps = steps

    def call(self, lengths: Any) -> Any:
        """Compare each step number with the length of its row."""
        return keras.ops.arange(self.steps, dtype="int32") < keras.ops.expand_dims(lengths, 1)
