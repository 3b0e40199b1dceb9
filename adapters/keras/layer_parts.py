"""What the layer modules give the walk in `model`: how to apply a layer, and where its weights are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import keras

from harness.core.adapter import Storage


class Padding(NamedTuple):
    """Which steps of a batch are padding: `lengths` int32 `[batch]`, `valid` bool `[batch, steps]`."""

    lengths: Any
    valid: Any


Compiler = Literal["xla", "graph", "none"]

OURS = "adapters.keras.backends.jax.tuned_layers"  # imported by name, since other backends have no JAX
EXACT = ("Conv1D", "Conv2D", "Flatten", "MaxPooling1D", "MaxPooling2D")
"""Those of ours that mixed precision has too."""


@dataclass(frozen=True)
class BuildOptions:
    """How layers are made. `compiler` is what compiles the training step that is ours: XLA, TensorFlow into a
    graph, or nothing; "none" for `fit` too, whose layers are as a user has them by default. `precision` is
    that of the weights; `mixed`: Keras' policy has layers compute in bfloat16."""

    precision: Storage
    compiler: Compiler
    device: str
    mixed: bool = False

    def kind(self, name: str) -> Any:
        """The class of Keras' layer of this name, or ours where it has one with faster gradients; in mixed
        precision only where those do not sum."""
        return self.own(name) or getattr(keras.layers, name)

    def own(self, name: str) -> Any:
        """Our layer or activation function of this name, where there is a faster one; or None."""
        here = self.compiler == "xla" and self.device == "cpu" and keras.backend.backend() == "jax"
        if here and (not self.mixed or name in EXACT):
            return getattr(importlib.import_module(OURS), name, None)
        return None


@dataclass(frozen=True, eq=False)
class BuiltLayer:
    """A layer. `apply` takes its input and, of padded sequences, the padding; `weights` gives the variables
    by the names of its canonical parameters, once it has been applied. `dropout` is the layer if it draws
    masks, `kernel` how a recurrent layer goes through its steps."""

    apply: Callable[[Any, Padding | None], Any]
    weights: Callable[[], Mapping[str, Any]] = field(default=dict)
    dropout: Any = None
    kernel: str = ""


def plain(layer: Any, *names: str) -> BuiltLayer:
    """A Keras layer that looks at no padding and keeps its weights as attributes of these names."""
    return BuiltLayer(lambda x, _: layer(x), lambda: {name: getattr(layer, name) for name in names})


def of_valid(layer: Any) -> BuiltLayer:
    """A layer without weights that takes `(x, valid)`."""
    return BuiltLayer(lambda x, padding: layer(x, need(padding).valid))


def ours(model: Any) -> list[str]:
    """The kinds of layers of a Keras model, and the activation functions, that are ours."""
    layers = list(model._flatten_layers())
    used: list[Any] = [*map(type, layers), *(getattr(layer, "activation", None) for layer in layers)]
    return sorted({each.__name__ for each in used if getattr(each, "__module__", "").startswith(OURS)})


def need(padding: Padding | None) -> Padding:
    """The padding, where a node that is `masked` says that there is one."""
    assert padding is not None, "the network has a masked layer and no lengths"
    return padding


class ValidSteps(keras.layers.Layer):  # type: ignore[misc]
    """From lengths `[batch]` to which steps are valid, bool `[batch, steps]`."""

    def __init__(self, steps: int) -> None:
        super().__init__(name="valid")
        self.steps = steps

    def call(self, lengths: Any) -> Any:
        """See the class."""
        return keras.ops.arange(self.steps, dtype="int32") < keras.ops.expand_dims(lengths, 1)
