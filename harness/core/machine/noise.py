"""Measure how noisy the machine is by an A/A comparison.

Both sides of each pair do the same work, so any ratio other than 1 is the machine's doing. A difference
between two frameworks that is no larger than such a ratio cannot be told from noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.core.machine import host, statistics, timing
from harness.core.machine.matmul import MAX_SIZE, MIN_REPEATS, MIN_SIZE, Multiply

PAIRS = 60
PART_S = 0.015  # of one side of a pair: some epochs of a small network
PRODUCT_S = 0.001
USUAL_PAIRS = 5  # of a comparison between frameworks, at least
QUIET = 0.02  # a machine is quiet if a comparison of USUAL_PAIRS pairs is off by at most this share


@dataclass(frozen=True)
class Noise:
    """The result of an A/A comparison: the same work on both sides, `part_s` seconds a side.

    `ratio`: as in any comparison. `spread`: the interquartile range of the times over their median.
    `slowest`: the longest time over the median. `cpu_share`: CPU time over wall time. `steal`: the share of
    all processors' time that a hypervisor gave to others. `switches`: involuntary context switches of this
    process. `blur`: 95 % of comparisons of USUAL_PAIRS pairs of equals stay below this share; `blur_of_all`:
    the same for comparisons of as many pairs as here.
    """

    ratio: statistics.Interval
    part_s: float
    spread: float
    slowest: float
    cpu_share: float
    steal: float | None
    switches: int
    blur: float
    blur_of_all: float

    @property
    def quiet(self) -> bool:
        """Whether USUAL_PAIRS pairs are enough to see a difference of QUIET."""
        return self.blur <= QUIET


def aa_noise(multiply: Multiply, threads: int) -> Noise:
    """Compare a matrix product, computed with `threads` threads, with itself for about two seconds."""
    size = MIN_SIZE
    while (product_s := min(multiply(size, MIN_REPEATS))) < PRODUCT_S and size < MAX_SIZE:
        size *= 2
    repeats = max(1, round(PART_S / product_s))
    ticks, start = host.ticks(), timing.ClockReading.now()
    times = multiply(size, 2 * PAIRS * repeats)
    elapsed, steal = timing.ClockReading.now().since(start), host.steal_since(ticks)
    parts = np.array(times).reshape(2 * PAIRS, repeats).sum(1)
    low, middle, high = statistics.quartiles(parts.tolist())
    logs = np.log(parts[0::2] / parts[1::2])
    return Noise(
        ratio=statistics.ratio(parts[0::2].tolist(), parts[1::2].tolist()),
        part_s=middle,
        spread=(high - low) / middle,
        slowest=float(parts.max()) / middle,
        cpu_share=elapsed.cpu_s / elapsed.wall_s / threads,
        steal=steal,
        switches=elapsed.switches,
        blur=blur(logs, USUAL_PAIRS),
        blur_of_all=blur(logs, PAIRS),
    )


def blur(logs: npt.NDArray[np.float64], pairs: int) -> float:
    """Return the share of 1 that 95 % of comparisons of `pairs` pairs of equals stay below.

    `logs`: the log ratios of measured pairs of equals, from which the comparisons are resampled. A comparison
    is the median of its pairs.
    """
    random = np.random.Generator(np.random.PCG64(0))
    picks = random.integers(0, len(logs), size=(4000, pairs))
    return math.expm1(float(np.quantile(np.abs(np.median(logs[picks], axis=1)), 0.95)))
