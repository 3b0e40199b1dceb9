"""Max pooling over non-overlapping windows.

JAX pools through its general windowed reduction: 5 of the 11 ms of a CNN's step. In non-overlapping windows
each place belongs to exactly one window, so slices suffice. The forward pass stores the index of the maximum
of each window, one byte per window, so that the backward pass does not search all places again: 0.96 of a
CNN's step. (With Keras' layer some processes took 26 ms a step throughout, at random; the cause is unknown,
and it was never observed with this layer.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import Array, lax

from adapters.keras.backends.jax.tuned_layers.barrier import no_fusion

MAX_PLACES = 256
"""Places of a window that are compared at once. For larger windows, such as 28 x 28, XLA needs 11 s to
compile the program, which then takes a thousand times as long as pooling one axis after the other."""


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Array, sizes: tuple[int, ...]) -> Array:
    """The maximum of each window of these sizes in `[batch, *places, channels]`; incomplete windows at the
    end of an axis are dropped."""
    return _forward(x, sizes)[0]


def _forward(x: Array, sizes: tuple[int, ...]) -> tuple[Array, tuple[Array, Array]]:
    slices = list(_slices(x, sizes))
    maximum = slices[0]
    for each in slices[1:]:
        maximum = jnp.maximum(maximum, each)
    last = len(slices) - 1
    # of equal maxima the first in row-major order gets the gradient, as in every framework
    index = jnp.full(maximum.shape, last, jnp.uint8 if last < MAX_PLACES else jnp.int32)
    for number in reversed(range(last)):
        index = lax.select(slices[number] == maximum, jnp.full_like(index, number), index)
    return maximum, (x, no_fusion(index))


def _backward(sizes: tuple[int, ...], residuals: tuple[Array, Array], dy: Array) -> tuple[Array]:
    """The gradient of x: dy of its window for the place of the maximum, zero for the others."""
    x, index = residuals
    batch, *windows, channels = dy.shape
    inner = [axis for size in sizes for axis in (1, size)]
    numbers = jnp.arange(math.prod(sizes), dtype=index.dtype).reshape(1, *inner, 1)
    window_axes = [2 * axis + 2 for axis in range(len(sizes))]
    chosen, slope = jnp.expand_dims(index, window_axes), jnp.expand_dims(dy, window_axes)
    dx = jnp.where(chosen == numbers, slope, 0)
    dx = dx.reshape(batch, *(n * size for n, size in zip(windows, sizes, strict=True)), channels)
    dropped = [(0, full - pooled) for full, pooled in zip(x.shape, dx.shape, strict=True)]
    return (jnp.pad(dx, dropped),)


def _slices(x: Array, sizes: tuple[int, ...]) -> Iterator[Array]:
    """The first place of every window, then the second of every window, and so on in row-major order."""
    batch, *places, channels = x.shape
    windows = [n // size for n, size in zip(places, sizes, strict=True)]
    ends = (batch, *(n * size for n, size in zip(windows, sizes, strict=True)), channels)
    split = [axis for pair in zip(windows, sizes, strict=True) for axis in pair]
    by_window = lax.slice(x, (0,) * x.ndim, ends).reshape(batch, *split, channels)
    for place in itertools.product(*map(range, sizes)):
        yield by_window[(slice(None), *(at for inner in place for at in (slice(None), inner)))]


max_pool.defvjp(_forward, _backward)


class _MaxPooling:
    """The call of a Keras max pooling whose strides equal its window."""

    def call(self: Any, inputs: Array) -> Array:
        """Map `[batch, *places, channels]` to fewer places. Large windows are pooled one axis after the
        other, the last axis first, so that of equal maxima the first in row-major order gets the gradient
        there too.
        """
        sizes = tuple(self.pool_size)
        if math.prod(sizes) <= MAX_PLACES:
            return max_pool(inputs, sizes)
        outputs = inputs
        for axis in reversed(range(len(sizes))):
            outputs = max_pool(outputs, tuple(size if at == axis else 1 for at, size in enumerate(sizes)))
        return outputs


class MaxPooling1D(_MaxPooling, keras.layers.MaxPooling1D):  # type: ignore[misc]
    """Max pooling over the steps of a sequence."""


class MaxPooling2D(_MaxPooling, keras.layers.MaxPooling2D):  # type: ignore[misc]
    """Max pooling over an image."""
