"""Compare two sets of canonical weights.

Canonical weights are one array per parameter, in the layout that the layer kinds of `harness/core/network`
define, so the weights of any two frameworks can be compared directly.
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
    """The largest difference between two sets of weights.

    mismatches: a description of each parameter that can't be compared. worst: the parameter with the largest
    absolute difference ("" if there is none). largest: that difference; inf if a value is not finite or if
    there is a mismatch, so that weights that were not compared never meet a bound.
    """

    mismatches: tuple[str, ...]
    worst: str
    largest: float


def compare(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> WeightDeviation:
    """Compare two sets of weights by their largest absolute difference, computed in float64."""
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
