"""Measure how fast a device multiplies matrices: the limit that training speeds are compared with.

A product of two square matrices is what hardware does best. A training's share of that rate tells how much of
the machine its loop leaves unused. A limit is a maximum, so the best of all sizes and repeats counts:
disturbances can only lower a rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Multiply = Callable[[int, int], list[float]]
"""`Adapter.multiply`: from a size and a number of repeats to the seconds of each product."""

MIN_SIZE, MAX_SIZE = 128, 16384  # rows of a matrix; three of the largest take 3 GB in float32
ALWAYS_TRIED_SIZE = 512  # all sizes up to this one are tried, however slow the smaller ones were
PER_SIZE_S = 0.2
MAX_PRODUCT_S = 0.1
MIN_REPEATS = 3


@dataclass(frozen=True)
class Peak:
    """The highest rate of a device, and the size (rows) of the matrices that reached it."""

    gflops: float
    size: int


def time_calls(product: Callable[[], object], repeats: int) -> list[float]:
    """Return the seconds of each of `repeats` calls, after one more call that triggers any compilation.

    `product` must return only once the device is done.
    """
    product()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return times


def measure_peak(multiply: Multiply) -> Peak:
    """Measure the highest rate over sizes that double until a product takes too long; about a second.

    A product of two n x n matrices is 2 n^3 operations.
    """
    best, size = Peak(0.0, MIN_SIZE), MIN_SIZE
    while True:
        times = multiply(size, MIN_REPEATS)
        while (left_s := PER_SIZE_S - sum(times)) > 0:
            # by their mean: on a busy machine, threads that wait for each other take a hundred times the best
            times += multiply(size, max(MIN_REPEATS, int(left_s / (sum(times) / len(times)))))
        best = max(best, Peak(2 * size**3 / min(times) / 1e9, size), key=lambda peak: peak.gflops)
        size *= 2
        # by the best rate: a single size may have been disturbed from its first product to its last
        too_long = 2 * size**3 / (best.gflops * 1e9) > MAX_PRODUCT_S
        if size > MAX_SIZE or (too_long and size > ALWAYS_TRIED_SIZE):
            return best
