"""A trained network as a `.keras` file of built-in layers and operations, which plain Keras loads.

The adapter's own layers are for training; here each is composed of what Keras has: recurrent layers and means
get the padding as their mask, positions are an embedding of step numbers, the rest are `keras.ops`. The file
is for any backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from adapters.keras import activations, layers, recurrent
from adapters.keras.layer_parts import BuildOptions, BuiltLayer, Padding, need
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

CHUNK = 256  # rows of a forward pass, which bounds its memory


def exporter(target: Target) -> Exporter:
    """What writes the target; raises ConfigError for another framework's."""
    if target != "keras":
        raise ConfigError([Mistake("--to", f"Keras writes no {target!r}", "keras")])
    return ToKeras()


class ToKeras:
    """`model.keras`."""

    def write(self, export: Export, folder: Path) -> None:
        """See `harness.core.export.exporter.Exporter`."""
        build(export).save(folder / "model.keras")

    def predict(self, folder: Path, inputs: tuple[NDArray[Any], ...]) -> Float:
        """See `harness.core.export.exporter.Exporter`."""
        loaded = keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=True)
        given = list(inputs) if len(inputs) > 1 else inputs[0]
        return np.asarray(loaded.predict(given, batch_size=CHUNK, verbose=0))


def build(export: Export) -> Any:
    """The Keras model with the trained weights."""
    given = export.network.input
    x = keras.Input(given.shape, dtype="int32" if given.vocabulary else export.precision, name="x")
    inputs, padding = [x], None
    if given.lengths:
        lengths = keras.Input((), dtype="int32", name="lengths")
        inputs.append(lengths)
        steps = np.arange(given.shape[0], dtype="int32")
        padding = Padding(lengths, ops.less(steps, ops.expand_dims(lengths, 1)))
    walk = _Walk(BuildOptions(export.precision, "none", "cpu"), padding)
    # not by keras.layers.Normalization, which keeps its numbers in float32 and no scale below 1e-7
    outputs = x
    if (scaling := export.inputs) is not None:
        mean, scale = (part.astype(export.precision) for part in (scaling.mean, scaling.scale))
        outputs = ops.divide(ops.subtract(x, mean), scale)
    outputs = walk.chain(export.network.nodes, outputs)
    if (scaling := export.outputs) is not None:
        mean, scale = (part.astype(export.precision) for part in (scaling.mean, scaling.scale))
        outputs = ops.add(ops.multiply(outputs, scale), mean)
    made = keras.Model(inputs if padding else x, outputs, name=_identifier(export.model))
    for node, built in walk.done:
        native = built.weights()
        for name, weight in node.weight_names().items():
            native[name].assign(export.weights[weight])
    return made


class _Walk:
    """Applies layers one after the other, and remembers them in `done`."""

    def __init__(self, setting: BuildOptions, padding: Padding | None) -> None:
        self._setting = setting
        self._padding = padding
        self.done: list[tuple[Node, BuiltLayer]] = []

    def chain(self, nodes: tuple[AnyNode, ...], x: Any) -> Any:
        """The output of layers in a row."""
        for node in nodes:
            if isinstance(node, ResidualNode):
                x = keras.layers.Add()([self.chain(node.shortcut, x), self.chain(node.body, x)])
                continue
            built = _layer(node, self._setting)
            self.done.append((node, built))
            x = built.apply(x, self._padding)
        return x


def _layer(node: Node, setting: BuildOptions) -> BuiltLayer:
    """The adapter's layer where that is Keras' own, else what is composed here."""
    match node.layer:
        case Activation():
            function = _activation(node.layer, setting.precision)
            return BuiltLayer(lambda x, _: function(x))
        case Flatten() if node.masked:
            return BuiltLayer(lambda x, padding: _flatten(node, _valid_only(x, padding, 0.0)))
        case GlobalPool(mode="max") if node.masked:
            return BuiltLayer(lambda x, padding: ops.max(_valid_only(x, padding, -np.inf), axis=1))
        case GlobalPool() if node.masked:
            pool = keras.layers.GlobalAveragePooling1D()
            return BuiltLayer(lambda x, padding: pool(x, mask=need(padding).valid))
        case Positions():
            return _positions(node, node.layer)
        case SimpleRNN() | LSTM() | GRU() if node.masked:
            return _masked_recurrent(node.layer, node, setting)
        case _:
            return layers.layer(node, None, setting)


def _activation(layer: Activation, precision: Storage) -> Any:
    """By its name where Keras' own is exact in this precision."""
    if precision == "float64" and layer.function in ("gelu", "leaky_relu"):
        return activations.function(layer, precision)
    if layer.function == "leaky_relu":
        return keras.layers.LeakyReLU(negative_slope=layer.slope)
    return keras.layers.Activation(layer.function)


def _valid_only(x: Any, padding: Padding | None, other: float) -> Any:
    """x `[rows, steps, ...]` with another value in padded steps."""
    valid = need(padding).valid
    shape = (-1, valid.shape[1], *[1] * (len(x.shape) - 2))
    return ops.where(ops.reshape(valid, shape), x, other)


def _flatten(node: Node, x: Any) -> Any:
    return keras.layers.Reshape(node.out_shape)(x)


def _positions(node: Node, layer: Positions) -> BuiltLayer:
    """An embedding of the step numbers, which are counted anew for each batch: a constant has no rows."""
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


def _masked_recurrent(layer: SimpleRNN | LSTM | GRU, node: Node, setting: BuildOptions) -> BuiltLayer:
    """With a mask, Keras' layers keep their state at padded steps: the last state is the last valid one's."""
    made = recurrent.of_keras(node, layer, layer.returns == "sequence", setting)
    if not layer.bidirectional:
        return BuiltLayer(
            lambda x, padding: made(x, mask=need(padding).valid), lambda: recurrent.cell_weights(made, "")
        )
    both = keras.layers.Bidirectional(made)
    return BuiltLayer(
        lambda x, padding: both(x, mask=need(padding).valid),
        lambda: (
            recurrent.cell_weights(both.forward_layer, "")
            | recurrent.cell_weights(both.backward_layer, "backward_")
        ),
    )


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
