"""The losses of raw network outputs: as objects for `compile`, and as a mean for the adapter's own loops."""

from __future__ import annotations

from typing import Any, assert_never

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from harness.core.adapter import Loss, Storage


def targets(loss: Loss, y: npt.NDArray[Any], precision: Storage) -> npt.NDArray[Any]:
    """The targets in the form that the loss needs: class numbers int32 `[rows]`, or floats of the outputs'
    shape."""
    match loss:
        case "cross_entropy":
            return y.astype(np.int32)
        case "binary_cross_entropy":
            return y.astype(precision)[:, None]
        case "mse":
            return y.astype(precision)
        case _:
            assert_never(loss)


def native(loss: Loss) -> Any:
    """The loss object for `model.compile`."""
    match loss:
        case "cross_entropy":
            return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        case "binary_cross_entropy":
            return keras.losses.BinaryCrossentropy(from_logits=True)
        case "mse":
            return keras.losses.MeanSquaredError()
        case _:
            assert_never(loss)


def mean(loss: Loss, y: Any, outputs: Any) -> Any:
    """The mean loss of a batch: the same value as `native`, without its masks, weights and reductions."""
    match loss:
        case "cross_entropy":
            return ops.mean(ops.sparse_categorical_crossentropy(y, outputs, from_logits=True))
        case "binary_cross_entropy":
            return ops.mean(ops.binary_crossentropy(y, outputs, from_logits=True))
        case "mse":
            return ops.mean(ops.square(outputs - y))
        case _:
            assert_never(loss)
