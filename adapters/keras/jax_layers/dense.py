"""A dense layer whose kernel has its gradient from a product that XLA has a fast kernel for.

The gradient is the product of the inputs' transpose with dy. XLA folds the transpose into the product, and a
product along the first axes has a slower kernel than the forward pass' one. With the transpose held apart it
is the same product. That pays up to some size, see `LARGEST`: the inputs of a large kernel are large
themselves, and to transpose them costs more than it gains.
"""

from __future__ import annotations

import jax
import keras
from jax import Array

from adapters.keras.jax_layers.barrier import apart

LARGEST = 2**18
"""The numbers of a kernel up to which it pays. An FNN with two kernels of n x n and batch 32 takes 0.94 (64),
0.95 (128), 0.96 (256) and 0.98 (512) of the time; one of 6272 x 128 behind a convolution makes it 1.17."""


@jax.custom_vjp
def multiply(x: Array, kernel: Array) -> Array:
    """`[..., inputs]` by `[inputs, units]`."""
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return multiply(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    rows, slopes = apart((x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])))
    across = apart(rows.T)
    return (slopes @ kernel.T).reshape(x.shape), across @ slopes


multiply.defvjp(_forward, _backward)


class Dense(keras.layers.Dense):  # type: ignore[misc]
    """What Keras' layer does."""

    def call(self, inputs: Array, training: bool | None = None) -> Array:
        """`[..., inputs]` to `[..., units]`."""
        kernel = keras.ops.convert_to_tensor(self.kernel)
        outputs = multiply(inputs, kernel) if kernel.size <= LARGEST else inputs @ kernel
        if self.use_bias:
            outputs += keras.ops.convert_to_tensor(self.bias)
        return outputs if self.activation is None else self.activation(outputs)
