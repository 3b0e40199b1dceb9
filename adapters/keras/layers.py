"""One case per layer kind: its Keras layer, and where its canonical weights are in it.

The layers are Keras' own wherever it has one that computes what the kind says, and its layouts are the
canonical ones, so a parameter *is* a variable of its layer.
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

TAKES_ACTIVATION = (Dense, Conv1D, Conv2D)
"""Kinds that an activation behind them becomes a part of, as users write it: calling one more layer costs
Keras on torch some 50 µs a step."""


def layer(node: Node, after: Activation | None, setting: BuildOptions) -> BuiltLayer:
    """The layer of a node; `after` is the activation that becomes a part of it."""
    activation = _activation(after, setting) if after else None
    match node.layer:
        case Dense():
            return _dense(node.layer, activation, setting)
        case Activation():
            return plain(keras.layers.Activation(_activation(node.layer, setting)))
        case Dropout(rate=rate):
            made = keras.layers.Dropout(rate)
            return BuiltLayer(lambda x, _: made(x), dropout=made if rate > 0 else None)
        case Flatten():
            return spatial.flatten(node, setting)
        case Reshape():
            return plain(keras.layers.Reshape(node.out_shape))
        case Conv1D() | Conv2D():
            return spatial.convolution(node.layer, activation, setting)
        case Pool():
            return spatial.pool(node, node.layer, setting)
        case GlobalPool():
            return spatial.global_pool(node, node.layer)
        case Upsample():
            return spatial.upsample(node, node.layer)
        case SimpleRNN() | LSTM() | GRU():
            return recurrent(node, node.layer, setting)
        case Embedding():
            return attention.embedding(node.layer)
        case Positions():
            return attention.positions(node, node.layer)
        case SelfAttention():
            return attention.self_attention(node, node.layer, setting)
        case LayerNorm():
            return attention.layer_norm(node.layer, setting)
        case BatchNorm():
            return spatial.batch_norm(node, node.layer)
        case _:
            assert_never(node.layer)


def _activation(layer: Activation, setting: BuildOptions) -> Function:
    found: Function = setting.own(layer.function) or function(layer, setting.precision)
    return found


def _dense(layer: Dense, activation: Any, setting: BuildOptions) -> BuiltLayer:
    # Made of zeros: the canonical weights come before anything is trained, and drawing costs time.
    made = setting.kind("Dense")(
        layer.units, activation=activation, use_bias=layer.use_bias, kernel_initializer="zeros"
    )
    return plain(made, "kernel", *(("bias",) if layer.use_bias else ()))
