"""A dense layer whose gradients come from products that XLA has fast kernels for.

The gradient of the kernel is the product of the inputs' transpose with dy. XLA folds the transpose into the
product, and a product along the first axes has a slower kernel than the forward pass' one. With the transpose
held apart it is the same product. That pays for small kernels: the inputs of a large one are large
themselves, and to transpose them costs more than it gains. Of a large kernel the other gradient, dy by the
kernel's transpose, is faster the other way round, the kernel by dy's transpose.
"""

from __future__ import annotations

import jax
import keras
from jax import Array

from adapters.keras.backends.jax.tuned_layers.barrier import apart, unfused

LARGE = 2**18
"""From how many numbers on a kernel is large. An FNN with two kernels of n x n and batch 32 takes, with the
transpose held apart, 0.94 (n = 64), 0.95 (128), 0.96 (256) and 0.98 (512) of the time; one of 6272 x 128
behind a convolution makes it 1.17. The other way round it takes 1.08 (128), 1.07 (256), 0.94 (512), 0.91
(1024) and 0.86 (2048), and the one behind a convolution 0.95."""

MANY = 2**14
"""From how many numbers on the inputs are held apart from what made them, too: XLA would compute them anew in
the loop that transposes them, a number at a time. With that the transformer of conf/model takes 0.94 (28
steps) and 0.96 (8 steps) of the time, and an FNN of width 64 takes 0.96 (batch 256). For fewer numbers it
costs more than it gains: that FNN takes 1.16 where the inputs of its narrower layers are held apart too."""


@jax.custom_vjp
def multiply(x: Array, kernel: Array) -> Array:
    """`[..., inputs]` by `[inputs, units]`."""
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return multiply(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    rows, slopes = apart((x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])))
    if kernel.size < LARGE:
        if rows.size >= MANY:
            rows = unfused(rows)
        return (slopes @ kernel.T).reshape(x.shape), apart(rows.T) @ slopes
    dx = unfused(unfused(kernel @ apart(slopes.T)).T)
    return dx.reshape(x.shape), rows.T @ slopes


multiply.defvjp(_forward, _backward)


class Dense(keras.layers.Dense):  # type: ignore[misc]
    """What Keras' layer does."""

    def call(self, inputs: Array, training: bool | None = None) -> Array:
        """`[..., inputs]` to `[..., units]`."""
        outputs = multiply(inputs, keras.ops.convert_to_tensor(self.kernel))
        if self.use_bias:
            outputs += keras.ops.convert_to_tensor(self.bias)
        return outputs if self.activation is None else self.activation(outputs)
