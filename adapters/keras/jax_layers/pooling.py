"""Largest values of windows side by side, one axis after the other.

JAX's own go through a general window: 5 of the 11 ms of a CNN's step. Of windows side by side each place
belongs to one, so slices do. (With Keras' layer some processes took 26 ms, by chance and for good; why is not
known, and with this one none was seen to.)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import Array, lax


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def largest(x: Array, axis: int, size: int) -> Array:
    """The largest of every `size` places along an axis; what is left at its end is dropped."""
    return _forward(x, axis, size)[0]


def _forward(x: Array, axis: int, size: int) -> tuple[Array, tuple[Array, Array]]:
    parts = _parts(x, axis, size)
    found = parts[0]
    for part in parts[1:]:
        found = jnp.maximum(found, part)
    return found, (x, found)


def _backward(axis: int, size: int, kept: tuple[Array, Array], dy: Array) -> tuple[Array]:
    """To the first place of each window that has its largest value."""
    x, found = kept
    taken, slopes = jnp.zeros(found.shape, bool), []
    for part in _parts(x, axis, size):
        is_it = (part == found) & ~taken
        slopes.append(jnp.where(is_it, dy, 0))
        taken |= is_it
    joined = jnp.stack(slopes, axis + 1)
    whole = joined.reshape(*x.shape[:axis], size * found.shape[axis], *x.shape[axis + 1 :])
    behind = [(0, 0)] * x.ndim
    behind[axis] = (0, x.shape[axis] - whole.shape[axis])
    return (jnp.pad(whole, behind),)


def _parts(x: Array, axis: int, size: int) -> list[Array]:
    """The first places of all windows, the second ones, and so on."""
    windows = x.shape[axis] // size
    cut = lax.slice_in_dim(x, 0, windows * size, axis=axis)
    apart = cut.reshape(*x.shape[:axis], windows, size, *x.shape[axis + 1 :])
    return [lax.index_in_dim(apart, place, axis + 1, keepdims=False) for place in range(size)]


largest.defvjp(_forward, _backward)


class _MaxPooling:
    """What a layer of Keras does with windows side by side."""

    def call(self: Any, inputs: Array) -> Array:
        """`[batch, *places, channels]` to fewer places. The last axis comes first, so that of equal values in
        a window of an image the one that is first row by row has the gradient, as everywhere."""
        outputs = inputs
        for axis in range(len(self.pool_size), 0, -1):
            outputs = largest(outputs, axis, self.pool_size[axis - 1])
        return outputs


class MaxPooling1D(_MaxPooling, keras.layers.MaxPooling1D):  # type: ignore[misc]
    """Along the steps of a sequence."""


class MaxPooling2D(_MaxPooling, keras.layers.MaxPooling2D):  # type: ignore[misc]
    """Over an image."""
