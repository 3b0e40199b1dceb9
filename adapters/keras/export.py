"""Exports a trained network as a `.keras` file of built-in layers and operations, which plain Keras loads.

The adapter's own layers are for training only, so they are composed of Keras' own here: recurrent layers and
means get the padding as their mask, positions become an embedding of step numbers, the rest are `keras.ops`.
The file works with every backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from adapters.keras import activations, layers, recurrent
from adapters.keras.layer_parts import BuildOptions, BuiltLayer, Padding, require_padding
from harness.core.adapter import Float, Storage
from harness.core.export.exporter import Export, Exporter, Target
from harness.core.network import (
    GRU,
    LSTM,
    Activation,
    AnyNode,
    Flatten,
    GlobalPool,
    Node,
    Positions,
    ResidualNode,
    SimpleRNN,
    sinusoids,
)
from harness.core.validation import ConfigError, Mistake

CHUNK = 256  # rows per forward pass, which limits its memory


def exporter(target: Target) -> Exporter:
    """The exporter of a target; raises ConfigError for a target of another framework."""
    if target != "keras":
        raise ConfigError([Mistake("--to", f"Keras cannot export {target!r}", "keras")])
    return ToKeras()


class ToKeras:
    """Writes `model.keras`, and predicts with it."""

    def write(self, export: Export, folder: Path) -> None:
        """See `harness.core.export.exporter.Exporter`."""
        build(export).save(folder / "model.keras")

    def predict(self, folder: Path, inputs: tuple[NDArray[Any], ...]) -> Float:
        """See `harness.core.export.exporter.Exporter`."""
        loaded = keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=True)
        x = list(inputs) if len(inputs) > 1 else inputs[0]
        return np.asarray(loaded.predict(x, batch_size=CHUNK, verbose=0))


def build(export: Export) -> Any:
    """Build the Keras model with the trained weights."""
    sample = export.network.input
    x = keras.Input(sample.shape, dtype="int32" if sample.vocabulary else export.precision, name="x")
    inputs, padding = [x], None
    if sample.lengths:
        lengths = keras.Input((), dtype="int32", name="lengths")
        inputs.append(lengths)
        steps = np.arange(sample.shape[0], dtype="int32")
        padding = Padding(lengths, ops.less(steps, ops.expand_dims(lengths, 1)))
    graph = _Graph(BuildOptions(export.precision, "none", "cpu"), padding)
    # not with keras.layers.Normalization, which stores float32 numbers and no scale below 1e-7
    outputs = x
    if (scaling := export.inputs) is not None:
        mean, scale = (part.astype(export.precision) for part in (scaling.mean, scaling.scale))
        outputs = ops.divide(ops.subtract(x, mean), scale)
    outputs = graph.apply(export.network.nodes, outputs)
    if (scaling := export.outputs) is not None:
        mean, scale = (part.astype(export.precision) for part in (scaling.mean, scaling.scale))
        outputs = ops.add(ops.multiply(outputs, scale), mean)
    exported = keras.Model(inputs if padding else x, outputs, name=_identifier(export.model))
    for node, built in graph.layers:
        native = built.weights()
        for name, weight in node.weight_names().items():
            native[name].assign(export.weights[weight])
    return exported


class _Graph:
    """Applies layers one after the other, and collects them in `layers`."""

    def __init__(self, options: BuildOptions, padding: Padding | None) -> None:
        self._options = options
        self._padding = padding
        self.layers: list[tuple[Node, BuiltLayer]] = []

    def apply(self, nodes: tuple[AnyNode, ...], x: Any) -> Any:
        """Apply a sequence of layers, and return its output."""
        for node in nodes:
            if isinstance(node, ResidualNode):
                x = keras.layers.Add()([self.apply(node.shortcut, x), self.apply(node.body, x)])
                continue
            built = _layer(node, self._options)
            self.layers.append((node, built))
            x = built.apply(x, self._padding)
        return x


def _layer(node: Node, options: BuildOptions) -> BuiltLayer:
    """Build the layer of a node: the adapter's if that is Keras' own, else one composed of Keras' own."""
    match node.layer:
        case Activation():
            function = _activation(node.layer, options.precision)
            return BuiltLayer(lambda x, _: function(x))
        case Flatten() if node.masked:
            return BuiltLayer(lambda x, padding: _flatten(node, _valid_only(x, padding, 0.0)))
        case GlobalPool(mode="max") if node.masked:
            return BuiltLayer(lambda x, padding: ops.max(_valid_only(x, padding, -np.inf), axis=1))
        case GlobalPool() if node.masked:
            pool = keras.layers.GlobalAveragePooling1D()
            return BuiltLayer(lambda x, padding: pool(x, mask=require_padding(padding).valid))
        case Positions():
            return _positions(node, node.layer)
        case SimpleRNN() | LSTM() | GRU() if node.masked:
            return _masked_recurrent(node.layer, node, options)
        case _:
            return layers.build_layer(node, None, options)


def _activation(layer: Activation, precision: Storage) -> Any:
    """The activation, as a named layer if Keras' own is exact in this precision."""
    if precision == "float64" and layer.function in ("gelu", "leaky_relu"):
        return activations.function(layer, precision)
    if layer.function == "leaky_relu":
        return keras.layers.LeakyReLU(negative_slope=layer.slope)
    return keras.layers.Activation(layer.function)


def _valid_only(x: Any, padding: Padding | None, fill: float) -> Any:
    """x `[rows, steps, ...]` with `fill` in padded steps."""
    valid = require_padding(padding).valid
    shape = (-1, valid.shape[1], *[1] * (len(x.shape) - 2))
    return ops.where(ops.reshape(valid, shape), x, fill)


def _flatten(node: Node, x: Any) -> Any:
    return keras.layers.Reshape(node.out_shape)(x)


def _positions(node: Node, layer: Positions) -> BuiltLayer:
    """An embedding of the step numbers, which are computed from each batch: a constant has no rows."""
    steps, features = node.in_shape
    learned = layer.encoding == "learned"
    table = keras.layers.Embedding(steps, features, embeddings_initializer="zeros", trainable=learned)

    def apply(x: Any, _: Padding | None) -> Any:
        ones = ops.ones_like(ops.max(x, axis=-1), dtype="int32")
        added = table(ops.cumsum(ones, axis=1) - 1)
        if not learned:
            table.embeddings.assign(np.array(sinusoids(node.in_shape)))
        return keras.layers.Add()([x, added])

    return BuiltLayer(apply, (lambda: {"table": table.embeddings}) if learned else dict)


def _masked_recurrent(layer: SimpleRNN | LSTM | GRU, node: Node, options: BuildOptions) -> BuiltLayer:
    """A recurrent layer with a mask: Keras keeps the state at padded steps, so the last state is that of the
    last valid step."""
    keras_layer = recurrent.keras_recurrent(node, layer, layer.returns == "sequence", options)
    if not layer.bidirectional:
        return BuiltLayer(
            lambda x, padding: keras_layer(x, mask=require_padding(padding).valid),
            lambda: recurrent.cell_weights(keras_layer, ""),
        )
    both = keras.layers.Bidirectional(keras_layer)
    return BuiltLayer(
        lambda x, padding: both(x, mask=require_padding(padding).valid),
        lambda: (
            recurrent.cell_weights(both.forward_layer, "")
            | recurrent.cell_weights(both.backward_layer, "backward_")
        ),
    )


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
