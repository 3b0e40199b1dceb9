"""Keras' layers whose gradients are spelled out, because what JAX derives XLA computes slowly on a CPU; one,
`Flatten`, that is only held apart from what comes before it; and an activation function, `gelu`.

Each layer is a subclass of the Keras layer of the same name, with its variables, its options and its formula.
What differs is the order of the sums, so the numbers are the same to rounding; the proof looks at them like
at any other. They are for programs that JAX compiles on a CPU: `fit` has Keras' own, and so has a GPU.

Time of a training step of the networks in conf/model with such layers / with Keras' own (epochs by turns in
one process, one core, batch 32; digits for the FNN, else 28 steps or 28 x 28 places): FNN 0.92, RNN 0.84,
LSTM 0.88, transformer 0.64, CNN 0.47.
"""

from adapters.keras.backends.jax.tuned_layers.activation import gelu
from adapters.keras.backends.jax.tuned_layers.attention import MultiHeadAttention
from adapters.keras.backends.jax.tuned_layers.convolution import Conv1D, Conv2D
from adapters.keras.backends.jax.tuned_layers.dense import Dense
from adapters.keras.backends.jax.tuned_layers.flatten import Flatten
from adapters.keras.backends.jax.tuned_layers.normalization import LayerNormalization
from adapters.keras.backends.jax.tuned_layers.pooling import MaxPooling1D, MaxPooling2D
from adapters.keras.backends.jax.tuned_layers.recurrent import GRU, LSTM, SimpleRNN

__all__ = [
    "GRU",
    "LSTM",
    "Conv1D",
    "Conv2D",
    "Dense",
    "Flatten",
    "LayerNormalization",
    "MaxPooling1D",
    "MaxPooling2D",
    "MultiHeadAttention",
    "SimpleRNN",
    "gelu",
]
