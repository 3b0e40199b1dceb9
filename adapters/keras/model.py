"""From a network to a Keras model: the walk through its layers and residual blocks, in the functional API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from adapters.keras import layers
from adapters.keras.layer_parts import BuildOptions, BuiltLayer, Padding, ValidSteps
from harness.core.network import Activation, AnyNode, Network, Node, ResidualNode

OUTPUTS = "outputs"  # the layer that makes float32 of what the last one gives in mixed precision


@dataclass(frozen=True, eq=False)
class Model:
    """A Keras model, its variables by canonical weight name, and what draws its dropout masks.

    The model takes x, and of padded sequences also their lengths. `recurrent` says how its recurrent layers
    go through their steps: "loop", "unrolled" or "fused", each that there is.
    """

    keras: Any
    parameters: dict[str, Any]
    seed_generators: tuple[Any, ...]
    recurrent: tuple[str, ...]

    def mixture(self) -> dict[str, object]:
        """The policy of dtypes, and of a mixed one the kinds of layers that compute in float32; nothing for a
        plain one."""
        policy = keras.config.dtype_policy()
        if policy.compute_dtype == policy.variable_dtype:
            return {}
        layers = (layer for layer in self.keras.layers if layer.weights or layer.name == OUTPUTS)
        wide = (layer for layer in layers if _is_wide(layer))
        names = {OUTPUTS if layer.name == OUTPUTS else type(layer).__name__ for layer in wide}
        return {"dtype_policy": policy.name, "float32_layers": sorted(names)}

    def seed(self, seed: int) -> None:
        """Start every stream of dropout masks anew, each at a place of its own."""
        for index, generator in enumerate(self.seed_generators):
            (start,) = np.random.SeedSequence((seed, index)).generate_state(1)
            generator.state.assign(np.array([start >> 1, 0], dtype=generator.state.dtype))


def build(network: Network, setting: BuildOptions, kind: type | None = None) -> Model:
    """The model of a network, with weights yet to be loaded; `kind` is a subclass of keras.Model to make."""
    given = network.input
    x = keras.Input(given.shape, dtype="int32" if given.vocabulary else setting.precision, name="x")
    inputs, padding = [x], None
    if given.lengths:
        lengths = keras.Input((), dtype="int32", name="lengths")
        inputs.append(lengths)
        padding = Padding(lengths, ValidSteps(given.shape[0])(lengths))
    walk = _Walk(setting, padding)
    outputs = walk.chain(network.nodes, x)
    if setting.mixed:  # as Keras' guide to mixed precision has it, so that losses and predictions are float32
        outputs = keras.layers.Activation("linear", dtype="float32", name=OUTPUTS)(outputs)
    made = (kind or keras.Model)(inputs if padding else x, outputs, name="network")
    parameters: dict[str, Any] = {}
    for node, built in walk.done:
        native = built.weights()
        if node.frozen:
            for variable in native.values():
                variable.trainable = False
        parameters |= {weight: native[name] for name, weight in node.weight_names().items()}
    generators = (built.dropout.seed_generator for _, built in walk.done if built.dropout is not None)
    kernels = {built.kernel for _, built in walk.done if built.kernel}
    return Model(made, parameters, tuple(generators), tuple(sorted(kernels)))


class _Walk:
    """Applies layers one after the other, and remembers them in `done`."""

    def __init__(self, setting: BuildOptions, padding: Padding | None) -> None:
        self._setting = setting
        self._padding = padding
        self.done: list[tuple[Node, BuiltLayer]] = []

    def chain(self, nodes: Sequence[AnyNode], x: Any) -> Any:
        """The output of layers in a row."""
        rest = list(nodes)
        while rest:
            node = rest.pop(0)
            if isinstance(node, ResidualNode):
                body = self.chain(node.body, x)
                x = self._sum(self.chain(node.shortcut, x), body)
                continue
            if node.does_nothing:  # Keras on torch takes 50 µs a step for a layer all the same
                continue
            after = None
            if isinstance(node.layer, layers.TAKES_ACTIVATION) and rest:
                after = _activation(rest[0])
            if after is not None:
                rest.pop(0)
            built = layers.layer(node, after, self._setting)
            self.done.append((node, built))
            x = built.apply(x, self._padding)
        return x

    def _sum(self, x: Any, y: Any) -> Any:
        """Of two tensors; by a layer where that gives both the dtype of a policy, else without one, whose
        call Keras on torch takes 0.1 ms for."""
        return keras.layers.Add()([x, y]) if self._setting.mixed else keras.ops.add(x, y)


def _is_wide(layer: Any) -> bool:
    """Whether a layer computes in float32 under a mixed policy: by its own dtype, or because Keras makes
    float32 of what comes into a normalisation, and bfloat16 of what comes out."""
    normalises = keras.layers.BatchNormalization | keras.layers.LayerNormalization
    return layer.compute_dtype == "float32" or isinstance(layer, normalises)


def _activation(node: AnyNode) -> Activation | None:
    return node.layer if isinstance(node, Node) and isinstance(node.layer, Activation) else None
