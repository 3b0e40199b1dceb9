"""Canonical weights: one array per parameter, made from a seed, the same for every framework.

They are drawn here rather than by the frameworks because no two of them draw alike. Each parameter has a
stream of random numbers that is named after it, so that another layer, or another order of layers, leaves the
rest as it was. The layout of each array is decided by the layer kinds of `harness/core/network`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class WeightDeviation:
    """How far two sets of weights are apart.

    mismatches: a description of each parameter that can't be compared. worst: the parameter with the largest
    absolute difference ("" if there is none). largest: that difference; inf if a value is not finite or if
    there is a mismatch, so that weights that were not compared never meet a bound.
    """

    mismatches: tuple[str, ...]
    worst: str
    largest: float


def compare(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> WeightDeviation:
    """The largest absolute differences between two sets of weights, taken in float64."""
    mismatches = [f"{name} is only in the first" for name in a if name not in b]
    mismatches += [f"{name} is only in the second" for name in b if name not in a]
    differences: dict[str, float] = {}
    for name in (name for name in a if name in b):
        if a[name].shape == b[name].shape:
            differences[name] = _largest_difference(a[name], b[name])
        else:
            mismatches.append(f"{name} has the shapes {a[name].shape} and {b[name].shape}")
    worst = max(differences, key=differences.__getitem__, default="")
    largest = math.inf if mismatches else differences.get(worst, 0.0)
    return WeightDeviation(tuple(mismatches), worst, largest)


def _largest_difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)
    return float(difference) if np.isfinite(difference) else math.inf
