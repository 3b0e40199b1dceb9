"""Initial weights: the initialisers by name, and the canonical weights of a network for a seed.

Frameworks draw even the same distribution differently, so the harness draws the weights with NumPy and every
framework loads them. Each parameter has its own random stream, named after it (`harness.core.rng`): adding or
reordering layers leaves the other weights unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core import rng
from harness.core.network.parameters import Param

Weights = dict[str, NDArray[Any]]
Key = tuple[int | str, ...]


def _zeros(param: Param, key: Key) -> NDArray[np.float64]:
    return np.zeros(param.shape)


def _ones(param: Param, key: Key) -> NDArray[np.float64]:
    return np.ones(param.shape)


def _uniform(variance: float, param: Param, key: Key) -> NDArray[np.float64]:
    limit = math.sqrt(3.0 * variance)  # the variance of U(-a, a) is a² / 3
    return limit * (2.0 * rng.uniform(param.shape, *key) - 1.0)


def _normal(variance: float, param: Param, key: Key) -> NDArray[np.float64]:
    return math.sqrt(variance) * rng.normal(param.shape, *key)


def _glorot(param: Param) -> float:
    """Return the variance by Glorot & Bengio (2010), eq. 12 and 16: 2 / (fan_in + fan_out)."""
    return 2.0 / (param.fan_in + param.fan_out)


def _he(param: Param) -> float:
    """Return the variance by He et al. (2015), eq. 10: 2 / fan_in."""
    return 2.0 / param.fan_in


def _forget_gate_ones(param: Param, key: Key) -> NDArray[np.float64]:
    """Return zeros with ones in the second of four blocks: an LSTM's gates are i, f, g, o."""
    blocks = np.zeros((4, param.size // 4))
    blocks[1] = 1.0
    return blocks.reshape(param.shape)


# Normal distributions are not truncated, as in the papers (Keras truncates at two deviations).
INITIALISERS: dict[str, Callable[[Param, Key], NDArray[np.float64]]] = {
    "zeros": _zeros,
    "ones": _ones,
    "forget_gate_ones": _forget_gate_ones,
    "uniform_0.05": lambda param, key: 0.05 * (2.0 * rng.uniform(param.shape, *key) - 1.0),
    "glorot_uniform": lambda param, key: _uniform(_glorot(param), param, key),
    "glorot_normal": lambda param, key: _normal(_glorot(param), param, key),
    "he_uniform": lambda param, key: _uniform(_he(param), param, key),
    "he_normal": lambda param, key: _normal(_he(param), param, key),
}


def initialise(params: Mapping[str, Param], seed: int, precision: str) -> Weights:
    """Return the initial weights, in the order of `params`.

    They are drawn in float64 and rounded to `precision` ("float32" or "float64"), so a float32 run starts
    from the rounded weights of the float64 run.
    """
    return {
        name: INITIALISERS[param.init](param, ("weights", seed, name)).astype(precision)
        for name, param in params.items()
    }
