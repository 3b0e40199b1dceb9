"""A dense layer whose gradients are matrix products that XLA has fast kernels for.

The gradient of the kernel is the product of the transposed inputs with dy. XLA folds the transpose into the
product, and a product over the leading axes has a slower kernel than the one of the forward pass. A barrier
keeps the transpose out of the product. This pays for small kernels: a large kernel has large inputs, and
transposing those costs more than it gains. For a large kernel the other gradient, dy by the transposed
kernel, is faster with its factors exchanged: the kernel by the transposed dy.
"""

from __future__ import annotations

import jax
import keras
from jax import Array

from adapters.keras.backends.jax.tuned_layers.barrier import no_fusion, optimization_barrier

LARGE = 2**18
"""Size (number of weights) from which on a kernel is large. With the transpose behind a barrier, an FNN with
two kernels of n x n and batch 32 takes 0.94 (n = 64), 0.95 (128), 0.96 (256) and 0.98 (512) of the time; one
with a kernel of 6272 x 128 after a convolution takes 1.17. With exchanged factors it takes 1.08 (128), 1.07
(256), 0.94 (512), 0.91 (1024) and 0.86 (2048), and the one after a convolution 0.95."""

MANY = 2**14
"""Number of input values from which on the inputs get a fusion barrier as well: without it XLA recomputes
them in the loop that transposes them, one value at a time. With it the transformer of conf/model takes 0.94
(28 steps) and 0.96 (8 steps) of the time, and an FNN of width 64 takes 0.96 (batch 256). For fewer values it
costs more than it gains: that FNN takes 1.16 if the inputs of its narrower layers get the barrier too."""


@jax.custom_vjp
def multiply(x: Array, kernel: Array) -> Array:
    """The product of `[..., inputs]` and `[inputs, units]`."""
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return multiply(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    rows, slopes = optimization_barrier((x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])))
    if kernel.size < LARGE:
        if rows.size >= MANY:
            rows = no_fusion(rows)
        return (slopes @ kernel.T).reshape(x.shape), optimization_barrier(rows.T) @ slopes
    dx = no_fusion(no_fusion(kernel @ optimization_barrier(slopes.T)).T)
    return dx.reshape(x.shape), rows.T @ slopes


multiply.defvjp(_forward, _backward)


class Dense(keras.layers.Dense):  # type: ignore[misc]
    """Keras' `Dense` with the gradients above."""

    def call(self, inputs: Array, training: bool | None = None) -> Array:
        """Map `[..., inputs]` to `[..., units]`."""
        outputs = multiply(inputs, keras.ops.convert_to_tensor(self.kernel))
        if self.use_bias:
            outputs += keras.ops.convert_to_tensor(self.bias)
        return outputs if self.activation is None else self.activation(outputs)
