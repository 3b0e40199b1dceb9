"""Flattening on JAX, held apart from what comes before it: see `unfused`."""

from __future__ import annotations

import keras
from jax import Array

from adapters.keras.backends.jax.tuned_layers.barrier import unfused


class Flatten(keras.layers.Flatten):  # type: ignore[misc]
    """What Keras' layer does. A CNN of one convolution, whose pooled images it flattens, takes 0.90 of the
    time of a step."""

    def call(self, inputs: Array) -> Array:
        """`[batch, ...]` to `[batch, n]`."""
        outputs: Array = super().call(unfused(inputs))
        return outputs
