"""Clocks, memory and the statistics of timings: raw values first, numbers made from them later.

Every reading takes wall time, CPU time and context switches together, because it is where they part that a
machine was busy with something else. Nothing here knows a framework: whoever times a device calls its
`sync()` before each reading.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Reading:
    """The process' clocks at one instant, or the difference of two: seconds, and involuntary switches."""

    wall_s: float
    cpu_s: float
    switches: int

    @classmethod
    def now(cls) -> Reading:
        """Read all clocks; the wall clock is monotonic."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), time.process_time(), usage.ru_nivcsw)

    def since(self, start: Reading) -> Reading:
        """What has passed since `start`."""
        return Reading(self.wall_s - start.wall_s, self.cpu_s - start.cpu_s, self.switches - start.switches)


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float
    pairs: int


def median(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    return float(np.median(values)) if len(values) else math.nan


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles, by linear interpolation; NaN of nothing."""
    if not len(values):
        return math.nan, math.nan, math.nan
    low, middle, high = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def ratio(a: Sequence[float], b: Sequence[float], resamples: int = 2000, seed: int = 0) -> Interval:
    """The ratio a / b of paired timings: the median of the pairs' ratios, and its 95 % bootstrap interval.

    Pairs are resampled whole (Efron & Tibshirani 1993, chapter 13, percentile interval), so what disturbs
    both sides of a pair cancels.
    """
    logs = np.log(np.asarray(a, np.float64) / np.asarray(b, np.float64))
    random = np.random.Generator(np.random.PCG64(seed))
    picks = random.integers(0, len(logs), size=(resamples, len(logs)))
    low, high = np.quantile(np.median(logs[picks], axis=1), [0.025, 0.975])
    return Interval(math.exp(float(np.median(logs))), math.exp(float(low)), math.exp(float(high)), len(logs))


WAITED, STOLEN = 0.1, 0.02
"""From which share of its wall time that a process waited, and of all processors' time that a hypervisor gave
to others, a timing counts as disturbed. A quiet machine stays below 0.03 and 0.005."""


def disturbances(
    wall_s: float, cpu_s: float, steal: float | None, computes: bool = True, beside: int = 0
) -> list[str]:
    """Why a timing is not the program's own, in words; nothing where nothing was noticed.

    Work that computes all the time has as much CPU time as wall time, or more with several threads: where
    they part, others had its cores. `computes` is false for a process that waits for a device. `steal` is
    None where the system doesn't say. `beside` is how many other runs went on meanwhile because they were
    asked for, which takes caches, memory and clock away even where each has cores of its own.
    """
    found = [f"it shared the machine with {beside} more at a time"] if beside else []
    waited = 1.0 - cpu_s / wall_s if wall_s > 0 else 0.0
    if computes and waited > WAITED:
        found.append(f"it had no core for {waited:.0%} of its time")
    if steal is not None and steal > STOLEN:
        found.append(f"a hypervisor gave {steal:.1%} of the processors' time to others")
    return found


def reset_peak_memory() -> bool:
    """Start a new peak for `peak_memory_mb`; False where the system can't (the peak is then the process')."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory_mb() -> float:
    """The largest resident set of this process since the last reset, in MB (10^6 bytes)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass  # no /proc on this system: the next line asks the kernel the older way
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def load_average() -> float:
    """The machine's load over the last minute."""
    return os.getloadavg()[0]
