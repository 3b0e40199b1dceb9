"""Layers of transformers: embedding, positions, self-attention, layer normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from adapters.keras.layer_parts import BuildOptions, BuiltLayer, Padding, plain, require_padding
from harness.core.network import Embedding, LayerNorm, Node, Positions, SelfAttention, sinusoids


def embedding(layer: Embedding) -> BuiltLayer:
    """An embedding of ids, int32 `[batch, steps]`."""
    table = keras.layers.Embedding(layer.vocabulary, layer.units, embeddings_initializer="zeros")
    return BuiltLayer(lambda x, _: table(x), lambda: {"table": table.embeddings})


def positions(node: Node, layer: Positions) -> BuiltLayer:
    """Position encodings: a weight if learned; if sinusoidal, a constant stored as an untrained variable."""
    if layer.encoding == "learned":
        return plain(_AddTable(None), "table")
    return plain(_AddTable(np.array(sinusoids(node.in_shape))))


def layer_norm(layer: LayerNorm, options: BuildOptions) -> BuiltLayer:
    """Layer normalisation over the last axis."""
    return plain(options.layer_class("LayerNormalization")(epsilon=layer.epsilon), "gamma", "beta")


def self_attention(node: Node, layer: SelfAttention, options: BuildOptions) -> BuiltLayer:
    """Keras' own layer with its key bias frozen at zero: the canonical layer has no key bias, and Keras has
    biases for query, key and value or for none of them."""
    size = node.in_shape[-1] // layer.heads
    layer_class = options.layer_class("MultiHeadAttention")
    attention = layer_class(layer.heads, size, kernel_initializer="zeros")
    wide, stock = options.precision == "float64", layer_class is keras.layers.MultiHeadAttention
    # JAX's attention computes its softmax in float32 for every input dtype (1e-7 off). Keras avoids it if it
    # has to return the scores too.
    with_scores = wide and stock and keras.backend.backend() == "jax"
    if wide:
        # TensorFlow converts a Python number to float32 before float64 (1e-8 off)
        attention._inverse_sqrt_key_dim = np.float64(1.0 / math.sqrt(size))

    def apply(x: Any, padding: Padding | None) -> Any:
        # a causal mask hides the padding too, which follows every valid step
        hides_padding = node.masked and not layer.causal
        mask = ops.expand_dims(require_padding(padding).valid, 1) if hides_padding else None
        y = attention(
            x, x, attention_mask=mask, use_causal_mask=layer.causal, return_attention_scores=with_scores
        )
        attention.key_dense.bias.trainable = False
        return y[0] if with_scores else y

    def weights() -> Mapping[str, Any]:
        return {
            "query_kernel": attention.query_dense.kernel,
            "query_bias": attention.query_dense.bias,
            "key_kernel": attention.key_dense.kernel,
            "value_kernel": attention.value_dense.kernel,
            "value_bias": attention.value_dense.bias,
            "output_kernel": attention.output_dense.kernel,
            "output_bias": attention.output_dense.bias,
        }

    return BuiltLayer(apply, weights)


class _AddTable(keras.layers.Layer):  # type: ignore[misc]
    """Adds a table `[steps, features]` to each sample: constant `values`, or a trained table if None."""

    table: Any

    def __init__(self, values: Any) -> None:
        super().__init__()
        self.values = values

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Create the table as a variable, so that it stays on the device."""
        self.table = self.add_weight(
            shape=input_shape[1:], initializer="zeros", trainable=self.values is None
        )
        if self.values is not None:
            self.table.assign(self.values.astype(self.table.dtype))

    def call(self, x: Any) -> Any:
        """Add the table to `x`, `[batch, steps, features]`."""
        return x + self.table
