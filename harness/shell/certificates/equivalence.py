"""Test whether two frameworks reach the same score, with a test that can confirm equivalence.

A t test that finds no difference proves nothing: with few seeds it never finds one. Here the claim to be
shown is "they differ by less than a margin". It is shown by two one-sided tests (Schuirmann 1987; Lakens
2017), which both succeed at the 5 % level exactly where the 90 % interval of the mean difference lies within
the margin. Scores are paired by seed, because a seed gives both frameworks the same weights and batches.

The interval is Student's rather than a bootstrap's: for five seeds, bootstrap intervals of a mean are too
short.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["equivalent", "different", "undecided"]
LEVEL = 0.05  # of each of the two one-sided tests


@dataclass(frozen=True)
class Equivalence:
    """The mean difference of a score over pairs, its 90 % interval, and the margin, all in the score's unit.

    Fewer than two pairs have no interval. If all differences are equal, the interval is a point.
    """

    pairs: int
    difference: float | None
    low: float | None
    high: float | None
    margin: float

    @property
    def verdict(self) -> Verdict:
        """`equivalent`: less than the margin is shown; `different`: more is shown; `undecided`: neither."""
        if self.low is None or self.high is None:
            return "undecided"
        if -self.margin < self.low and self.high < self.margin:
            return "equivalent"
        return "different" if self.low > self.margin or self.high < -self.margin else "undecided"


def compare(a: Sequence[float], b: Sequence[float], margin: float) -> Equivalence:
    """Test a - b, where `a[i]` and `b[i]` form a pair; assumes that the differences are roughly normal.

    Claiming that all pairs of several frameworks are equivalent needs no smaller level, because each pair has
    to pass (Berger 1982, intersection-union tests).
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    count = len(differences)
    mean = statistics.fmean(differences) if count else None
    if mean is None or count < 2:
        return Equivalence(count, mean, None, None, margin)
    # the quantile of Student's t; imported here because SciPy takes half a second to import
    from scipy.special import stdtrit

    half = float(stdtrit(count - 1, 1 - LEVEL)) * statistics.stdev(differences) / math.sqrt(count)
    return Equivalence(count, mean, mean - half, mean + half, margin)
