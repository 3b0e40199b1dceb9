"""Builds a Keras model of a network, with the functional API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from adapters.keras import layers
from adapters.keras.layer_parts import BuildOptions, BuiltLayer, Padding, ValidSteps
from harness.core.network import Activation, AnyNode, Network, Node, ResidualNode

OUTPUTS = "outputs"  # the layer that casts the outputs to float32 in mixed precision


@dataclass(frozen=True, eq=False)
class Model:
    """A Keras model, its variables by canonical weight name, and the generators of its dropout masks.

    The inputs of the model are x and, for padded sequences, their lengths. `recurrent` lists how its
    recurrent layers run their steps: "loop", "unrolled", "fused".
    """

    keras: Any
    parameters: dict[str, Any]
    seed_generators: tuple[Any, ...]
    recurrent: tuple[str, ...]

    def mixed_precision(self) -> dict[str, object]:
        """The settings of a mixed dtype policy: its name, and the layer classes that compute in float32.
        Empty without a mixed policy."""
        policy = keras.config.dtype_policy()
        if policy.compute_dtype == policy.variable_dtype:
            return {}
        layers = (layer for layer in self.keras.layers if layer.weights or layer.name == OUTPUTS)
        wide = (layer for layer in layers if _is_wide(layer))
        names = {OUTPUTS if layer.name == OUTPUTS else type(layer).__name__ for layer in wide}
        return {"dtype_policy": policy.name, "float32_layers": sorted(names)}

    def seed(self, seed: int) -> None:
        """Reset every generator of dropout masks, each to its own start."""
        for index, generator in enumerate(self.seed_generators):
            (start,) = np.random.SeedSequence((seed, index)).generate_state(1)
            generator.state.assign(np.array([start >> 1, 0], dtype=generator.state.dtype))


def build(network: Network, options: BuildOptions, model_class: type | None = None) -> Model:
    """Build the model of a network, without its weights. `model_class` is a subclass of keras.Model to
    use."""
    sample = network.input
    x = keras.Input(sample.shape, dtype="int32" if sample.vocabulary else options.precision, name="x")
    inputs, padding = [x], None
    if sample.lengths:
        lengths = keras.Input((), dtype="int32", name="lengths")
        inputs.append(lengths)
        padding = Padding(lengths, ValidSteps(sample.shape[0])(lengths))
    graph = _Graph(options, padding)
    outputs = graph.apply(network.nodes, x)
    if options.mixed:  # so that losses and predictions are float32, as in Keras' guide to mixed precision
        outputs = keras.layers.Activation("linear", dtype="float32", name=OUTPUTS)(outputs)
    keras_model = (model_class or keras.Model)(inputs if padding else x, outputs, name="network")
    parameters: dict[str, Any] = {}
    for node, built in graph.layers:
        native = built.weights()
        if node.frozen:
            for variable in native.values():
                variable.trainable = False
        parameters |= {weight: native[name] for name, weight in node.weight_names().items()}
    generators = (built.dropout.seed_generator for _, built in graph.layers if built.dropout is not None)
    kernels = {built.kernel for _, built in graph.layers if built.kernel}
    return Model(keras_model, parameters, tuple(generators), tuple(sorted(kernels)))


class _Graph:
    """Applies layers one after the other, and collects them in `layers`."""

    def __init__(self, options: BuildOptions, padding: Padding | None) -> None:
        self._options = options
        self._padding = padding
        self.layers: list[tuple[Node, BuiltLayer]] = []

    def apply(self, nodes: Sequence[AnyNode], x: Any) -> Any:
        """Apply a sequence of layers, and return its output."""
        rest = list(nodes)
        while rest:
            node = rest.pop(0)
            if isinstance(node, ResidualNode):
                body = self.apply(node.body, x)
                x = self._sum(self.apply(node.shortcut, x), body)
                continue
            if node.is_identity:  # Keras on torch needs 50 µs a step even for such a layer
                continue
            following = None
            if isinstance(node.layer, layers.FUSES_ACTIVATION) and rest:
                following = _activation(rest[0])
            if following is not None:
                rest.pop(0)
            built = layers.build_layer(node, following, self._options)
            self.layers.append((node, built))
            x = built.apply(x, self._padding)
        return x

    def _sum(self, x: Any, y: Any) -> Any:
        """The sum of two tensors: by a layer in mixed precision, which casts both to the policy's dtype, else
        by an operation, because Keras on torch needs 0.1 ms for the call of a layer."""
        return keras.layers.Add()([x, y]) if self._options.mixed else keras.ops.add(x, y)


def _is_wide(layer: Any) -> bool:
    """Whether a layer computes in float32 under a mixed policy: because of its own dtype, or because Keras
    casts the inputs of a normalisation to float32 and its outputs to bfloat16."""
    normalises = keras.layers.BatchNormalization | keras.layers.LayerNormalization
    return layer.compute_dtype == "float32" or isinstance(layer, normalises)


def _activation(node: AnyNode) -> Activation | None:
    return node.layer if isinstance(node, Node) and isinstance(node.layer, Activation) else None
