"""The activation functions, as Keras has them; exact ones where Keras' own are not exact in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, assert_never

import keras
from keras import ops

from harness.core.adapter import Storage
from harness.core.network import Activation

Function = Callable[[Any], Any]


def function(layer: Activation, precision: Storage) -> Function:
    """The function of an activation, from one tensor to one of the same shape."""
    match layer.function:
        case "linear":
            return _of_keras("linear")
        case "relu":
            return _of_keras("relu")
        case "sigmoid":
            return _of_keras("sigmoid")
        case "tanh":
            return _of_keras("tanh")
        case "silu":
            return _of_keras("silu")
        case "softmax":
            return _of_keras("softmax")
        case "gelu":
            return _exact_gelu if precision == "float64" else _gelu
        case "leaky_relu":
            return _leaky_relu(layer.slope, precision)
        case _:
            assert_never(layer.function)


def _of_keras(name: str) -> Function:
    found: Function = keras.activations.get(name)
    return found


def _gelu(x: Any) -> Any:
    return ops.gelu(x, approximate=False)


def _exact_gelu(x: Any) -> Any:
    """GELU by erf. TensorFlow's own rounds the root of two to float32, also for float64 (5e-9 off)."""
    root = ops.convert_to_tensor(math.sqrt(2.0), dtype="float64")
    return 0.5 * x * (1.0 + ops.erf(x / root))


def _leaky_relu(slope: float, precision: Storage) -> Function:
    """Leaky ReLU. The slope of TensorFlow's own is a float32 attribute, also for float64 (7e-10 off)."""

    def exact(x: Any) -> Any:
        return ops.where(x > 0, x, x * ops.convert_to_tensor(slope, dtype="float64"))

    def native(x: Any) -> Any:
        return ops.leaky_relu(x, negative_slope=slope)

    return exact if precision == "float64" else native
