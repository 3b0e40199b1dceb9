"""Layers of transformers: embedding, positions, self-attention, layer normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from adapters.keras.layer_parts import BuildOptions, BuiltLayer, Padding, need, plain
from harness.core.network import Embedding, LayerNorm, Node, Positions, SelfAttention, sinusoids


def embedding(layer: Embedding) -> BuiltLayer:
    """Takes ids int32 `[batch, steps]`."""
    made = keras.layers.Embedding(layer.vocabulary, layer.units, embeddings_initializer="zeros")
    return BuiltLayer(lambda x, _: made(x), lambda: {"table": made.embeddings})


def positions(node: Node, layer: Positions) -> BuiltLayer:
    """Learned ones are a weight; sinusoidal ones a constant, kept where Keras keeps what is not trained."""
    if layer.encoding == "learned":
        return plain(_AddTable(None), "table")
    return plain(_AddTable(np.array(sinusoids(node.in_shape))))


def layer_norm(layer: LayerNorm, setting: BuildOptions) -> BuiltLayer:
    """Over the last axis."""
    return plain(setting.kind("LayerNormalization")(epsilon=layer.epsilon), "gamma", "beta")


def self_attention(node: Node, layer: SelfAttention, setting: BuildOptions) -> BuiltLayer:
    """Keras' own layer, whose key bias stays at zero: the canonical layer has none, Keras three or none."""
    size = node.in_shape[-1] // layer.heads
    kind = setting.kind("MultiHeadAttention")
    made = kind(layer.heads, size, kernel_initializer="zeros")
    wide, own = setting.precision == "float64", kind is keras.layers.MultiHeadAttention
    # JAX's own attention has its softmax in float32 whatever comes in (1e-7 off); Keras' way to give the
    # scores out as well does without it.
    spelled_out = wide and own and keras.backend.backend() == "jax"
    if wide:
        # TensorFlow makes float32 of a Python number before it makes float64 of it (1e-8 off)
        made._inverse_sqrt_key_dim = np.float64(1.0 / math.sqrt(size))

    def apply(x: Any, padding: Padding | None) -> Any:
        # a causal mask hides the padding too: it lies behind every valid step
        hidden = node.masked and not layer.causal
        mask = ops.expand_dims(need(padding).valid, 1) if hidden else None
        y = made(x, x, attention_mask=mask, use_causal_mask=layer.causal, return_attention_scores=spelled_out)
        made.key_dense.bias.trainable = False
        return y[0] if spelled_out else y

    def weights() -> Mapping[str, Any]:
        return {
            "query_kernel": made.query_dense.kernel,
            "query_bias": made.query_dense.bias,
            "key_kernel": made.key_dense.kernel,
            "value_kernel": made.value_dense.kernel,
            "value_bias": made.value_dense.bias,
            "output_kernel": made.output_dense.kernel,
            "output_bias": made.output_dense.bias,
        }

    return BuiltLayer(apply, weights)


class _AddTable(keras.layers.Layer):  # type: ignore[misc]
    """Adds a table `[steps, features]` to each sample: the given one, or one that is trained."""

    table: Any

    def __init__(self, values: Any) -> None:
        super().__init__()
        self.values = values

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Make the table as a variable, which stays on the device."""
        self.table = self.add_weight(
            shape=input_shape[1:], initializer="zeros", trainable=self.values is None
        )
        if self.values is not None:
            self.table.assign(self.values.astype(self.table.dtype))

    def call(self, x: Any) -> Any:
        """`x` is `[batch, steps, features]`."""
        return x + self.table
