"""Convolutions, pooling, flattening, upsampling and batch normalisation, in Keras' (canonical) layouts."""

from __future__ import annotations

from typing import Any, assert_never

import keras
import numpy as np
from keras import ops

from adapters.keras.layer_parts import BuildOptions, BuiltLayer, masked, plain
from harness.core.network import BatchNorm, Conv1D, Conv2D, GlobalPool, Node, Pool, Upsample

LAST = "channels_last"  # always explicit, because a user's keras.json may set the other default


def convolution(layer: Conv1D | Conv2D, activation: Any, options: BuildOptions) -> BuiltLayer:
    """A convolution; `activation` is a function or None."""
    keras_layer = options.layer_class("Conv1D" if isinstance(layer, Conv1D) else "Conv2D")(
        layer.filters,
        layer.kernel_size,
        layer.strides,
        layer.padding,
        data_format=LAST,
        activation=activation,
        use_bias=layer.use_bias,
        kernel_initializer="zeros",
    )
    return plain(keras_layer, "kernel", *(("bias",) if layer.use_bias else ()))


def pool(node: Node, layer: Pool, options: BuildOptions) -> BuiltLayer:
    """Pooling over non-overlapping windows; an incomplete window at the end is dropped."""
    dimensions = "1D" if len(node.in_shape) == 2 else "2D"
    match layer.mode:
        case "max":
            layer_class = options.layer_class(f"MaxPooling{dimensions}")
        case "average":
            layer_class = options.layer_class(f"AveragePooling{dimensions}")
        case _:
            assert_never(layer.mode)
    return plain(layer_class(layer.size, data_format=LAST))


def global_pool(node: Node, layer: GlobalPool) -> BuiltLayer:
    """Pooling over all places; for padded sequences, over the valid steps."""
    if node.masked:
        return masked(_PoolValid(layer.mode))
    flat = len(node.in_shape) == 2
    match layer.mode:
        case "average":
            layer_class = keras.layers.GlobalAveragePooling1D if flat else keras.layers.GlobalAveragePooling2D
        case "max":
            layer_class = keras.layers.GlobalMaxPooling1D if flat else keras.layers.GlobalMaxPooling2D
        case _:
            assert_never(layer.mode)
    return plain(layer_class(data_format=LAST))


def flatten(node: Node, options: BuildOptions) -> BuiltLayer:
    """Flattening in row-major order; padded steps become zeros."""
    if node.masked:
        return masked(_FlattenValid())
    return plain(options.layer_class("Flatten")(data_format=LAST))


def upsample(node: Node, layer: Upsample) -> BuiltLayer:
    """Repetition of each place `size` times along each axis."""
    if len(node.in_shape) == 2:
        return plain(keras.layers.UpSampling1D(layer.size))
    return plain(keras.layers.UpSampling2D(layer.size, data_format=LAST, interpolation="nearest"))


def batch_norm(node: Node, layer: BatchNorm) -> BuiltLayer:
    """Keras' own layer, which is the canonical one: biased running variance, momentum as the weight of the
    old statistics. A frozen one stays in evaluation mode by itself."""
    frozen = {"trainable": not node.frozen}
    keras_layer = keras.layers.BatchNormalization(momentum=layer.momentum, epsilon=layer.epsilon, **frozen)
    return plain(keras_layer, "gamma", "beta", "moving_mean", "moving_variance")


class _PoolValid(keras.layers.Layer):  # type: ignore[misc]
    """The mean or the maximum over the valid steps of `[batch, steps, features]`."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def call(self, x: Any, valid: Any) -> Any:
        """Pool `x`, with `valid` bool `[batch, steps]`."""
        chosen = ops.expand_dims(valid, -1)
        if self.mode == "max":
            return ops.max(ops.where(chosen, x, -np.inf), axis=1)
        return ops.sum(ops.where(chosen, x, 0.0), axis=1) / ops.sum(ops.cast(chosen, x.dtype), axis=1)


class _FlattenValid(keras.layers.Layer):  # type: ignore[misc]
    """Flattens `[batch, steps, ...]` to `[batch, n]`; padded steps become zeros."""

    def call(self, x: Any, valid: Any) -> Any:
        """Flatten `x`, with `valid` bool `[batch, steps]`."""
        chosen = ops.reshape(valid, (-1, x.shape[1], *[1] * (len(x.shape) - 2)))
        return ops.reshape(ops.where(chosen, x, 0.0), (-1, int(np.prod(x.shape[1:]))))
