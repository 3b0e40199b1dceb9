"""Layers that slide a window over places, pool them, or normalise over them. Keras' layouts are canonical."""

from __future__ import annotations

from typing import Any, assert_never

import keras
import numpy as np
from keras import ops

from adapters.keras.layer_parts import BuildOptions, BuiltLayer, of_valid, plain
from harness.core.network import BatchNorm, Conv1D, Conv2D, GlobalPool, Node, Pool, Upsample

LAST = "channels_last"  # said each time, because a user's keras.json may have the other one as default


def convolution(layer: Conv1D | Conv2D, activation: Any, setting: BuildOptions) -> BuiltLayer:
    """`activation` is a function or None."""
    made = setting.kind("Conv1D" if isinstance(layer, Conv1D) else "Conv2D")(
        layer.filters,
        layer.kernel_size,
        layer.strides,
        layer.padding,
        data_format=LAST,
        activation=activation,
        use_bias=layer.use_bias,
        kernel_initializer="zeros",
    )
    return plain(made, "kernel", *(("bias",) if layer.use_bias else ()))


def pool(node: Node, layer: Pool, setting: BuildOptions) -> BuiltLayer:
    """Windows side by side; what is left at the end is dropped."""
    dimensions = "1D" if len(node.in_shape) == 2 else "2D"
    match layer.mode:
        case "max":
            kind = setting.kind(f"MaxPooling{dimensions}")
        case "average":
            kind = setting.kind(f"AveragePooling{dimensions}")
        case _:
            assert_never(layer.mode)
    return plain(kind(layer.size, data_format=LAST))


def global_pool(node: Node, layer: GlobalPool) -> BuiltLayer:
    """Over all places; of padded sequences, over the valid steps."""
    if node.masked:
        return of_valid(_PoolValid(layer.mode))
    flat = len(node.in_shape) == 2
    match layer.mode:
        case "average":
            kind = keras.layers.GlobalAveragePooling1D if flat else keras.layers.GlobalAveragePooling2D
        case "max":
            kind = keras.layers.GlobalMaxPooling1D if flat else keras.layers.GlobalMaxPooling2D
        case _:
            assert_never(layer.mode)
    return plain(kind(data_format=LAST))


def flatten(node: Node, setting: BuildOptions) -> BuiltLayer:
    """In row-major order; padded steps come out as zeros."""
    if node.masked:
        return of_valid(_FlattenValid())
    return plain(setting.kind("Flatten")(data_format=LAST))


def upsample(node: Node, layer: Upsample) -> BuiltLayer:
    """Each place `size` times along each axis."""
    if len(node.in_shape) == 2:
        return plain(keras.layers.UpSampling1D(layer.size))
    return plain(keras.layers.UpSampling2D(layer.size, data_format=LAST, interpolation="nearest"))


def batch_norm(node: Node, layer: BatchNorm) -> BuiltLayer:
    """Keras' own is the canonical one: biased running variance, momentum as the share that is kept. It looks
    by itself at whether it is frozen, and then stays in evaluation mode."""
    frozen = {"trainable": not node.frozen}
    made = keras.layers.BatchNormalization(momentum=layer.momentum, epsilon=layer.epsilon, **frozen)
    return plain(made, "gamma", "beta", "moving_mean", "moving_variance")


class _PoolValid(keras.layers.Layer):  # type: ignore[misc]
    """The mean or the largest value over the valid steps of `[batch, steps, features]`."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def call(self, x: Any, valid: Any) -> Any:
        """`valid` is bool `[batch, steps]`."""
        chosen = ops.expand_dims(valid, -1)
        if self.mode == "max":
            return ops.max(ops.where(chosen, x, -np.inf), axis=1)
        return ops.sum(ops.where(chosen, x, 0.0), axis=1) / ops.sum(ops.cast(chosen, x.dtype), axis=1)


class _FlattenValid(keras.layers.Layer):  # type: ignore[misc]
    """All axes of a sample into one, `[batch, steps, ...]` to `[batch, n]`; padded steps become zeros."""

    def call(self, x: Any, valid: Any) -> Any:
        """`valid` is bool `[batch, steps]`."""
        chosen = ops.reshape(valid, (-1, x.shape[1], *[1] * (len(x.shape) - 2)))
        return ops.reshape(ops.where(chosen, x, 0.0), (-1, int(np.prod(x.shape[1:]))))
