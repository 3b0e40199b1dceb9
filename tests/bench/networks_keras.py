"""The five architectures in plain Keras, as in a script for one of them. They use no adapter, except its
layers for JAX if requested (`own`), which any script could import.

They compute the models of conf/model/*.yaml with the same number of parameters, which every comparison
checks: the key bias of an attention, which does not affect its softmax, stays at zero.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import keras

CLASSES = 10
UNITS = 64
WIDTH, HEADS, HIDDEN, BLOCKS = 64, 4, 128, 2


def network(model: str, shape: tuple[int, ...], unrolled: bool = False, own: bool = False) -> keras.Model:
    """The network of an architecture for samples of `shape`; `unrolled`: recurrences step by step."""
    layers = _own_layers() if own else keras.layers
    match model:
        case "fnn":
            hidden = [layers.Flatten(), layers.Dense(64, activation="relu")]
            hidden.append(layers.Dense(32, activation="relu"))
        case "cnn":
            hidden = [
                layers.Reshape((*shape, 1)),
                layers.Conv2D(32, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(128, activation="relu"),
            ]
        case "rnn":
            hidden = [layers.SimpleRNN(UNITS, unroll=unrolled)]
        case "lstm":
            hidden = [layers.LSTM(UNITS, unroll=unrolled)]
        case "transformer":
            return _transformer(shape, layers)
        case _:
            raise ValueError(f"no network {model!r}")
    return keras.Sequential([keras.Input(shape), *hidden, layers.Dense(CLASSES)])


def parameters(model: keras.Model) -> int:
    """Number of trained parameters."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


class Positions(keras.layers.Layer):  # type: ignore[misc]
    """Add a learned vector to each step."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, x: Any) -> Any:
        return x + self.table


def _own_layers() -> Any:
    from adapters.keras.backends.jax import tuned_layers

    own = {name: getattr(tuned_layers, name) for name in tuned_layers.__all__}
    return SimpleNamespace(**vars(keras.layers) | own)


def _transformer(shape: tuple[int, ...], layers: Any) -> keras.Model:
    gelu = getattr(layers, "gelu", "gelu")
    inputs = keras.Input(shape)
    x = Positions()(layers.Dense(WIDTH)(inputs))
    for _ in range(BLOCKS):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)
        y = attention(y, y)
        attention.key_dense.bias.trainable = False
        x = x + y
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.Dense(WIDTH)(layers.Dense(HIDDEN, activation=gelu)(y))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-5)(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))
