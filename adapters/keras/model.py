"""From a network to a Keras model, one case a layer kind, with the way to each canonical weight.

Keras' layouts are the canonical ones for most kinds, so a parameter usually *is* a variable of the layer; a
kind for which that is not so gets its own mapping here, beside the case that builds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import keras
import numpy as np
from keras import ops

from harness.adapter import Precision
from harness.spec import Activation, Concrete, Dense, Dropout, Flatten, Network, Node

Function = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Model:
    """A Keras model, its variables by canonical weight name, and what draws its dropout masks."""

    keras: Any
    parameters: dict[str, Any]
    seed_generators: tuple[Any, ...]

    def seed(self, seed: int) -> None:
        """Start every stream of dropout masks anew, each at a place of its own."""
        for index, generator in enumerate(self.seed_generators):
            (start,) = np.random.SeedSequence((seed, index)).generate_state(1)
            generator.state.assign(np.array([start >> 1, 0], dtype=generator.state.dtype))


def build(network: Network, precision: Precision, kind: type | None = None) -> Model:
    """The model of a network, with weights yet to be loaded; `kind` is a subclass of keras.Model to make."""
    made = list(_layers(network.nodes, precision))
    inputs = outputs = keras.Input(network.in_shape, dtype=precision)
    for _, layer in made:
        outputs = layer(outputs)
    parameters: dict[str, Any] = {}
    for node, layer in made:
        native = _parameters(node.layer, layer)
        parameters |= {weight: native[name] for name, weight in node.weight_names().items()}
    generators = [getattr(layer, "seed_generator", None) for _, layer in made]
    return Model(
        (kind or keras.Model)(inputs, outputs, name="network"),
        parameters,
        tuple(generator for generator in generators if generator is not None),
    )


def _layers(nodes: Sequence[Node], precision: Precision) -> Iterator[tuple[Node, Any]]:
    """Each node with its Keras layer. An activation after a dense layer becomes a part of it, as users write
    it: calling one more layer costs Keras on torch some 50 µs a step."""
    following = [*(node.layer for node in nodes[1:]), None]
    fused = False
    for node, after in zip(nodes, following, strict=True):
        if fused:
            fused = False
            continue
        layer = _layer(node.layer, precision)
        if isinstance(node.layer, Dense) and isinstance(after, Activation):
            layer.activation = _function(after, precision)
            fused = True
        yield node, layer


def _layer(layer: Concrete, precision: Precision) -> Any:
    match layer:
        case Dense():
            # Made of zeros: the canonical weights come before anything is trained, and drawing costs time.
            return keras.layers.Dense(layer.units, use_bias=layer.use_bias, kernel_initializer="zeros")
        case Activation():
            return keras.layers.Activation(_function(layer, precision))
        case Dropout():
            return keras.layers.Dropout(layer.rate)
        case Flatten():
            return keras.layers.Flatten()
        case _:
            assert_never(layer)


def _parameters(layer: Concrete, native: Any) -> dict[str, Any]:
    """The variables of a layer by the names of its canonical parameters."""
    match layer:
        case Dense():
            return {"kernel": native.kernel} | ({"bias": native.bias} if layer.use_bias else {})
        case Activation() | Dropout() | Flatten():
            return {}
        case _:
            assert_never(layer)


def _function(layer: Activation, precision: Precision) -> Function:
    match layer.function:
        case "linear":
            return _of_keras("linear")
        case "relu":
            return _of_keras("relu")
        case "sigmoid":
            return _of_keras("sigmoid")
        case "tanh":
            return _of_keras("tanh")
        case "silu":
            return _of_keras("silu")
        case "softmax":
            return _of_keras("softmax")
        case "gelu":
            return _exact_gelu if precision == "float64" else _gelu
        case "leaky_relu":
            return _leaky_relu(layer.slope, precision)
        case _:
            assert_never(layer.function)


def _of_keras(name: str) -> Function:
    function: Function = keras.activations.get(name)
    return function


def _gelu(x: Any) -> Any:
    return ops.gelu(x, approximate=False)


def _exact_gelu(x: Any) -> Any:
    """GELU by erf. TensorFlow's own rounds the root of two to float32, also for float64 (5e-9 off)."""
    root = ops.convert_to_tensor(math.sqrt(2.0), dtype="float64")
    return 0.5 * x * (1.0 + ops.erf(x / root))


def _leaky_relu(slope: float, precision: Precision) -> Function:
    """Leaky ReLU. The slope of TensorFlow's own is a float32 attribute, also for float64 (7e-10 off)."""

    def exact(x: Any) -> Any:
        return ops.where(x > 0, x, x * ops.convert_to_tensor(slope, dtype="float64"))

    def native(x: Any) -> Any:
        return ops.leaky_relu(x, negative_slope=slope)

    return exact if precision == "float64" else native
