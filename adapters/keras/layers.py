"""One case per layer kind: its Keras layer, and the variables that hold its canonical weights.

The layers are Keras' own if Keras has one with the formula of the kind. Keras' layouts are the canonical
ones, so every parameter is a variable of its layer.
"""

from __future__ import annotations

from typing import Any, assert_never

import keras

from adapters.keras import attention, spatial
from adapters.keras.activations import Function, function
from adapters.keras.layer_parts import BuildOptions, BuiltLayer, plain
from adapters.keras.recurrent import recurrent
from harness.core.network import (
    GRU,
    LSTM,
    Activation,
    BatchNorm,
    Conv1D,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalPool,
    LayerNorm,
    Node,
    Pool,
    Positions,
    Reshape,
    SelfAttention,
    SimpleRNN,
    Upsample,
)

FUSES_ACTIVATION = (Dense, Conv1D, Conv2D)
"""Kinds that take over a following activation, as users write it: one more layer call costs Keras on torch
about 50 µs a step."""


def build_layer(node: Node, following: Activation | None, options: BuildOptions) -> BuiltLayer:
    """Build the layer of a node; `following` is the activation that it takes over."""
    activation = _activation(following, options) if following else None
    match node.layer:
        case Dense():
            return _dense(node.layer, activation, options)
        case Activation():
            return plain(keras.layers.Activation(_activation(node.layer, options)))
        case Dropout(rate=rate):
            dropout = keras.layers.Dropout(rate)
            return BuiltLayer(lambda x, _: dropout(x), dropout=dropout if rate > 0 else None)
        case Flatten():
            return spatial.flatten(node, options)
        case Reshape():
            return plain(keras.layers.Reshape(node.out_shape))
        case Conv1D() | Conv2D():
            return spatial.convolution(node.layer, activation, options)
        case Pool():
            return spatial.pool(node, node.layer, options)
        case GlobalPool():
            return spatial.global_pool(node, node.layer)
        case Upsample():
            return spatial.upsample(node, node.layer)
        case SimpleRNN() | LSTM() | GRU():
            return recurrent(node, node.layer, options)
        case Embedding():
            return attention.embedding(node.layer)
        case Positions():
            return attention.positions(node, node.layer)
        case SelfAttention():
            return attention.self_attention(node, node.layer, options)
        case LayerNorm():
            return attention.layer_norm(node.layer, options)
        case BatchNorm():
            return spatial.batch_norm(node, node.layer)
        case _:
            assert_never(node.layer)


def _activation(layer: Activation, options: BuildOptions) -> Function:
    activation: Function = options.tuned(layer.function) or function(layer, options.precision)
    return activation


def _dense(layer: Dense, activation: Any, options: BuildOptions) -> BuiltLayer:
    # Initialised to zeros: the canonical weights replace them before training, and drawing costs time.
    dense = options.layer_class("Dense")(
        layer.units, activation=activation, use_bias=layer.use_bias, kernel_initializer="zeros"
    )
    return plain(dense, "kernel", *(("bias",) if layer.use_bias else ()))
