"""Do two frameworks reach the same score? A test that can say yes, and not only fail to say no.

That a t test finds no difference proves nothing: with few seeds it finds none whatever there is. Here the
claim "they differ by less than a margin" is what has to be shown, by two one-sided tests (Schuirmann 1987;
Lakens 2017), which both succeed at the 5 % level exactly where the 90 % interval of the mean difference lies
within the margin. Scores are paired by seed, since a seed gives both frameworks the same weights and batches.

The interval is Student's and not a bootstrap, whose intervals of a mean are too short for five seeds.
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
    """The mean difference of a score over pairs, its 90 % interval, and the margin: all in the score's unit.

    Fewer than two pairs have no interval. Where all differences are the same number, it is a point.
    """

    pairs: int
    difference: float | None
    low: float | None
    high: float | None
    margin: float

    @property
    def verdict(self) -> Verdict:
        """equivalent: less than the margin is shown; different: more is shown; undecided: neither is."""
        if self.low is None or self.high is None:
            return "undecided"
        if -self.margin < self.low and self.high < self.margin:
            return "equivalent"
        return "different" if self.low > self.margin or self.high < -self.margin else "undecided"


def compare(a: Sequence[float], b: Sequence[float], margin: float) -> Equivalence:
    """The test for a - b, where `a[i]` and `b[i]` are a pair; differences are taken to be about normal.

    To say of several frameworks that all pairs are equivalent needs no smaller level, because each pair has
    to pass (Berger 1982, intersection-union tests).
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    count = len(differences)
    mean = statistics.fmean(differences) if count else None
    if mean is None or count < 2:
        return Equivalence(count, mean, None, None, margin)
    half = t_quantile(1 - LEVEL, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return Equivalence(count, mean, mean - half, mean + half, margin)


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t with `degrees` of freedom (1, 2, ...) for a probability of 0.5 ... 1."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halvings: the angle to the last bit of a double
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 2 * probability - 1 else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) * tan(angle)), a finite sum (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    odd = degrees % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(odd, degrees - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k + 1) / (k + 2)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total
