"""Statistics of timings: medians, quartiles, and ratios of paired times with confidence intervals.

Timings are skewed by disturbances that only lengthen them, so the estimates here are medians, and the
interval of a ratio comes from a bootstrap over whole pairs rather than from a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, from `pairs` pairs."""

    estimate: float
    low: float
    high: float
    pairs: int


def median(values: Sequence[float]) -> float:
    """Return the median; NaN without values."""
    return float(np.median(values)) if len(values) else math.nan


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the three quartiles, by linear interpolation; NaN without values."""
    if not len(values):
        return math.nan, math.nan, math.nan
    low, middle, high = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def ratio(a: Sequence[float], b: Sequence[float], resamples: int = 2000) -> Interval:
    """Return the ratio a / b of paired timings: the median of the pairs' ratios, and its 95 % interval.

    The interval is a percentile bootstrap (Efron & Tibshirani 1993, chapter 13) that resamples whole pairs,
    so disturbances of both sides of a pair cancel.
    """
    logs = np.log(np.asarray(a, np.float64) / np.asarray(b, np.float64))
    random = np.random.Generator(np.random.PCG64(0))
    picks = random.integers(0, len(logs), size=(resamples, len(logs)))
    low, high = np.quantile(np.median(logs[picks], axis=1), [0.025, 0.975])
    return Interval(math.exp(float(np.median(logs))), math.exp(float(low)), math.exp(float(high)), len(logs))
