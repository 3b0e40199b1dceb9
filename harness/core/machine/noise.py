"""How noisy the machine is: an A/A comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.core.machine import host, statistics, timing
from harness.core.machine.matmul import FEWEST, LARGEST, SMALLEST, Multiply

PAIRS = 60
PART_S = 0.015  # of one side of a pair: some epochs of a small network
PRODUCT_S = 0.001
USUAL_PAIRS = 5  # of a comparison between frameworks, at least
QUIET = 0.02  # what a comparison of so few pairs may be off by on a machine that is called quiet


@dataclass(frozen=True)
class Noise:
    """An A/A comparison: the same work on both sides, `part_s` seconds a side.

    `ratio` is as of any comparison, `spread` the interquartile range of the times over their median,
    `slowest` the longest over the median. `cpu_share` is CPU time over wall time, `steal` the share of all
    processors' time that a hypervisor gave to others, `switches` how often this process had to make way.
    `blur` is what 95 % of comparisons of USUAL_PAIRS pairs of equals stay below, as a share; `blur_of_all`
    the same of comparisons with as many pairs as here.
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
        """Whether a few pairs are enough to see a difference of QUIET."""
        return self.blur <= QUIET


def aa_noise(multiply: Multiply, threads: int) -> Noise:
    """Compare a product with itself for some two seconds; `threads` is how many it is computed with."""
    size = SMALLEST
    while (product_s := min(multiply(size, FEWEST))) < PRODUCT_S and size < LARGEST:
        size *= 2
    repeats = max(1, round(PART_S / product_s))
    ticks, start = host.ticks(), timing.ClockReading.now()
    taken = multiply(size, 2 * PAIRS * repeats)
    passed, steal = timing.ClockReading.now().since(start), host.steal_since(ticks)
    parts = np.array(taken).reshape(2 * PAIRS, repeats).sum(1)
    low, middle, high = statistics.quartiles(parts.tolist())
    logs = np.log(parts[0::2] / parts[1::2])
    return Noise(
        ratio=statistics.ratio(parts[0::2].tolist(), parts[1::2].tolist()),
        part_s=middle,
        spread=(high - low) / middle,
        slowest=float(parts.max()) / middle,
        cpu_share=passed.cpu_s / passed.wall_s / threads,
        steal=steal,
        switches=passed.switches,
        blur=blur(logs, USUAL_PAIRS),
        blur_of_all=blur(logs, PAIRS),
    )


def blur(logs: npt.NDArray[np.float64], pairs: int) -> float:
    """What 95 % of comparisons of so many pairs stay below, as a share of 1, if pairs are drawn from these.

    `logs` are the log ratios of pairs of equals; a comparison gives the median of its pairs.
    """
    random = np.random.Generator(np.random.PCG64(0))
    picks = random.integers(0, len(logs), size=(4000, pairs))
    return math.expm1(float(np.quantile(np.abs(np.median(logs[picks], axis=1)), 0.95)))
