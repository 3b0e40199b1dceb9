"""How fast a device multiplies matrices, and how steadily: the two measures that a machine gets.

A product of two square matrices is what hardware does best, so its rate is the limit that a training is held
against: a network's share of it says how much of the machine its loop leaves unused. A limit is a maximum,
hence the best of all sizes and repeats: what disturbs a machine only ever lowers it.

How steady a machine is shows in an A/A comparison: the same work on both sides, so that whatever ratio comes
out is the machine's doing, and a real ratio that is no larger can't be told from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Multiply = Callable[[int, int], list[float]]
"""`Adapter.multiply`: from a size and a number of repeats to the seconds of each product."""

SMALLEST, LARGEST = 128, 16384  # rows of a matrix; three of the largest take 3 GB in float32
ALWAYS = 512  # the size up to which all are tried, however slow the smaller ones were
PER_SIZE_S = 0.2
LONGEST_S = 0.1  # of one product
FEWEST = 3  # repeats


@dataclass(frozen=True)
class Peak:
    """The highest rate of a device, and the matrices (their rows) that reached it."""

    gflops: float
    size: int


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
