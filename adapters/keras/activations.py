"""The activation functions: Keras' own, or exact versions if Keras' own lose precision in float64."""

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
    """The function of an activation, which maps a tensor to one of the same shape."""
    match layer.function:
        case "linear":
            return _keras_activation("linear")
        case "relu":
            return _keras_activation("relu")
        case "sigmoid":
            return _keras_activation("sigmoid")
        case "tanh":
            return _keras_activation("tanh")
        case "silu":
            return _keras_activation("silu")
        case "softmax":
            return _keras_activation("softmax")
        case "gelu":
            return _exact_gelu if precision == "float64" else _gelu
        case "leaky_relu":
            return _leaky_relu(layer.slope, precision)
        case _:
            assert_never(layer.function)


def _keras_activation(name: str) -> Function:
    activation: Function = keras.activations.get(name)
    return activation


def _gelu(x: Any) -> Any:
    return ops.gelu(x, approximate=False)


def _exact_gelu(x: Any) -> Any:
    """GELU by erf. TensorFlow's own rounds the square root of 2 to float32 even in float64 (5e-9 off)."""
    root = ops.convert_to_tensor(math.sqrt(2.0), dtype="float64")
    return 0.5 * x * (1.0 + ops.erf(x / root))


def _leaky_relu(slope: float, precision: Storage) -> Function:
    """Leaky ReLU. The slope of TensorFlow's own is a float32 attribute even in float64 (7e-10 off)."""

    def exact(x: Any) -> Any:
        return ops.where(x > 0, x, x * ops.convert_to_tensor(slope, dtype="float64"))

    def native(x: Any) -> Any:
        return ops.leaky_relu(x, negative_slope=slope)

    return exact if precision == "float64" else native
