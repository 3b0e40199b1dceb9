"""How fast a device multiplies matrices, and how steadily: the two measures that a machine gets.

A product of two square matrices is what hardware does best, so its rate is the limit that a training is held
against: a network's share of it says how much of the machine its loop leaves unused. A limit is a maximum,
hence the best of all sizes and repeats: what disturbs a machine only ever lowers it.

How steady a machine is shows in an A/A comparison: the same work on both sides, so that whatever ratio comes
out is the machine's doing, and a real ratio that is no larger can't be told from it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.core.machine import host, timing

Multiply = Callable[[int, int], list[float]]
"""`Adapter.multiply`: from a size and a number of repeats to the seconds of each product."""

SMALLEST, LARGEST = 128, 16384  # rows of a matrix; three of the largest take 3 GB in float32
ALWAYS = 512  # the size up to which all are tried, however slow the smaller ones were
PER_SIZE_S = 0.2
LONGEST_S = 0.1  # of one product
FEWEST = 3  # repeats

PAIRS = 60
PART_S = 0.015  # of one side of a pair: some epochs of a small network
PRODUCT_S = 0.001
USUAL_PAIRS = 5  # of a comparison between frameworks, at least
QUIET = 0.02  # what a comparison of so few pairs may be off by on a machine that is called quiet


@dataclass(frozen=True)
class Peak:
    """The highest rate of a device, and the matrices (their rows) that reached it."""

    gflops: float
    size: int


@dataclass(frozen=True)
class Noise:
    """An A/A comparison: the same work on both sides, `part_s` seconds a side.

    `ratio` is as of any comparison, `spread` the interquartile range of the times over their median,
    `slowest` the longest over the median. `cpu_share` is CPU time over wall time, `steal` the share of all
    processors' time that a hypervisor gave to others, `switches` how often this process had to make way.
    `blur` is what 95 % of comparisons of USUAL_PAIRS pairs of equals stay below, as a share; `blur_of_all`
    the same of comparisons with as many pairs as here.
    """

    ratio: timing.Interval
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


def times(product: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls; one before them compiles what is to be compiled.

    `product` returns when the device is done.
    """
    product()
    found: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        product()
        found.append(time.perf_counter() - start)
    return found


def peak(multiply: Multiply) -> Peak:
    """The highest rate over sizes that double until a product would take too long; about a second.

    A product of two n x n matrices is 2 n^3 operations.
    """
    best, size = Peak(0.0, SMALLEST), SMALLEST
    while True:
        taken = multiply(size, FEWEST)
        while (left_s := PER_SIZE_S - sum(taken)) > 0:
            # by their mean: on a busy machine, threads that wait for each other take a hundred times the best
            taken += multiply(size, max(FEWEST, int(left_s / (sum(taken) / len(taken)))))
        best = max(best, Peak(2 * size**3 / min(taken) / 1e9, size), key=lambda found: found.gflops)
        size *= 2
        # by the best rate: a single size may have been disturbed from its first product to its last
        too_long = 2 * size**3 / (best.gflops * 1e9) > LONGEST_S
        if size > LARGEST or (too_long and size > ALWAYS):
            return best


def noise(multiply: Multiply, threads: int) -> Noise:
    """Compare a product with itself for some two seconds; `threads` is how many it is computed with."""
    size = SMALLEST
    while (product_s := min(multiply(size, FEWEST))) < PRODUCT_S and size < LARGEST:
        size *= 2
    repeats = max(1, round(PART_S / product_s))
    ticks, start = host.ticks(), timing.Reading.now()
    taken = multiply(size, 2 * PAIRS * repeats)
    passed, steal = timing.Reading.now().since(start), host.steal_since(ticks)
    parts = np.array(taken).reshape(2 * PAIRS, repeats).sum(1)
    low, middle, high = timing.quartiles(parts.tolist())
    logs = np.log(parts[0::2] / parts[1::2])
    return Noise(
        ratio=timing.ratio(parts[0::2].tolist(), parts[1::2].tolist()),
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
