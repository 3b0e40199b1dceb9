"""Largest values of windows side by side.

JAX's own go through a general window: 5 of the 11 ms of a CNN's step. Of windows side by side each place
belongs to one, so slices do. The forward pass keeps which place of each window was the largest, a byte a
window, so that the backward pass does not read all places again to find it: 0.96 of a CNN's step. (With
Keras' layer some processes took 26 ms, by chance and for good; why is not known, and with this one none was
seen to.)
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

from adapters.keras.backends.jax.tuned_layers.barrier import unfused

MOST = 256
"""Places of a window that are looked at together. Of more, such as 28 x 28, XLA makes a program that it
compiles for 11 s and that takes a thousand times as long as one axis after the other."""


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def largest(x: Array, sizes: tuple[int, ...]) -> Array:
    """The largest of each window of these sizes in `[batch, *places, channels]`; what is left at the end of
    an axis is dropped."""
    return _forward(x, sizes)[0]


def _forward(x: Array, sizes: tuple[int, ...]) -> tuple[Array, tuple[Array, Array]]:
    parts = list(_parts(x, sizes))
    found = parts[0]
    for part in parts[1:]:
        found = jnp.maximum(found, part)
    last = len(parts) - 1
    # the first place that has the largest value, row by row, has the gradient, as everywhere
    place = jnp.full(found.shape, last, jnp.uint8 if last < MOST else jnp.int32)
    for number in reversed(range(last)):
        place = lax.select(parts[number] == found, jnp.full_like(place, number), place)
    return found, (x, unfused(place))


def _backward(sizes: tuple[int, ...], kept: tuple[Array, Array], dy: Array) -> tuple[Array]:
    """Each place has dy of its window if it was the largest, and zero if not."""
    x, place = kept
    batch, *windows, channels = dy.shape
    inner = [axis for size in sizes for axis in (1, size)]
    numbers = jnp.arange(math.prod(sizes), dtype=place.dtype).reshape(1, *inner, 1)
    behind_each = [2 * axis + 2 for axis in range(len(sizes))]
    here, slope = jnp.expand_dims(place, behind_each), jnp.expand_dims(dy, behind_each)
    whole = jnp.where(here == numbers, slope, 0)
    whole = whole.reshape(batch, *(n * size for n, size in zip(windows, sizes, strict=True)), channels)
    rest = [(0, wanted - got) for wanted, got in zip(x.shape, whole.shape, strict=True)]
    return (jnp.pad(whole, rest),)


def _parts(x: Array, sizes: tuple[int, ...]) -> Iterator[Array]:
    """The first places of all windows, the second ones, and so on, row by row."""
    batch, *places, channels = x.shape
    windows = [n // size for n, size in zip(places, sizes, strict=True)]
    ends = (batch, *(n * size for n, size in zip(windows, sizes, strict=True)), channels)
    split = [axis for pair in zip(windows, sizes, strict=True) for axis in pair]
    apart = lax.slice(x, (0,) * x.ndim, ends).reshape(batch, *split, channels)
    for place in itertools.product(*map(range, sizes)):
        yield apart[(slice(None), *(at for inner in place for at in (slice(None), inner)))]


largest.defvjp(_forward, _backward)


class _MaxPooling:
    """What a layer of Keras does with windows side by side."""

    def call(self: Any, inputs: Array) -> Array:
        """`[batch, *places, channels]` to fewer places. One axis after the other begins with the last one, so
        that of equal values the first row by row has the gradient there too."""
        sizes = tuple(self.pool_size)
        if math.prod(sizes) <= MOST:
            return largest(inputs, sizes)
        outputs = inputs
        for axis in reversed(range(len(sizes))):
            outputs = largest(outputs, tuple(size if at == axis else 1 for at, size in enumerate(sizes)))
        return outputs


class MaxPooling1D(_MaxPooling, keras.layers.MaxPooling1D):  # type: ignore[misc]
    """Along the steps of a sequence."""


class MaxPooling2D(_MaxPooling, keras.layers.MaxPooling2D):  # type: ignore[misc]
    """Over an image."""
