"""Canonical weights: one array per parameter, made from a seed, the same for every framework.

They are drawn here rather than by the frameworks because no two of them draw alike. Each parameter has a
stream of random numbers that is named after it, so that another layer, or another order of layers, leaves the
rest as it was. The layout of each array is decided by the layer kinds of `harness/core/network`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.core import rng
from harness.core.storage import npz

if TYPE_CHECKING:
    from harness.core.network import Param

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
    """Variance by Glorot & Bengio (2010), eq. 12 and 16: 2 / (fan_in + fan_out)."""
    return 2.0 / (param.fan_in + param.fan_out)


def _he(param: Param) -> float:
    """Variance by He et al. (2015), eq. 10: 2 / fan_in."""
    return 2.0 / param.fan_in


def _forget_gate_ones(param: Param, key: Key) -> NDArray[np.float64]:
    """Zeros with ones in the second of four blocks: an LSTM's gates are i, f, g, o."""
    blocks = np.zeros((4, param.size // 4))
    blocks[1] = 1.0
    return blocks.reshape(param.shape)


# Normal ones are not truncated, as in the papers (Keras truncates at two deviations).
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
    """The initial weights, in the order of `params`.

    Drawn in float64, then rounded to `precision` ("float32" or "float64"): a float32 run starts at the
    float64 run's weights, rounded.
    """
    return {
        name: INITIALISERS[param.init](param, ("weights", seed, name)).astype(precision)
        for name, param in params.items()
    }


def save(path: Path, weights: Mapping[str, NDArray[Any]]) -> None:
    """Write `weights` to an npz file, at once or not at all."""
    npz.save(path, weights)


def load(path: Path) -> Weights:
    """Read what `save` wrote."""
    return npz.load(path)


@dataclass(frozen=True)
class WeightDeviation:
    """How far two sets of weights are apart.

    by_name: largest absolute difference of each parameter that both have in one shape; inf where a value is
    not finite. mismatches: in words, which parameters can't be compared. largest: of by_name, or inf if
    there is a mismatch, so that a bound on it can't be met by weights that were never compared.
    worst: the parameter with the largest difference ("" if there is none).
    """

    by_name: dict[str, float]
    mismatches: tuple[str, ...]
    worst: str
    largest: float


def compare(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> WeightDeviation:
    """The largest absolute differences between two sets of weights, taken in float64."""
    mismatches = [f"{name} is only in the first" for name in a if name not in b]
    mismatches += [f"{name} is only in the second" for name in b if name not in a]
    by_name: dict[str, float] = {}
    for name in (name for name in a if name in b):
        if a[name].shape == b[name].shape:
            by_name[name] = _largest_difference(a[name], b[name])
        else:
            mismatches.append(f"{name} has the shapes {a[name].shape} and {b[name].shape}")
    worst = max(by_name, key=by_name.__getitem__, default="")
    largest = math.inf if mismatches else by_name.get(worst, 0.0)
    return WeightDeviation(by_name, tuple(mismatches), worst, largest)


def _largest_difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)
    return float(difference) if np.isfinite(difference) else math.inf
