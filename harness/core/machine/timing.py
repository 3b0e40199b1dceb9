"""Read clocks and memory, and detect disturbed timings: raw values first, derived numbers later.

A reading takes wall time, CPU time and context switches together, because a difference between them shows
that the machine was busy with something else. This module knows no framework: callers that time a device call
its `sync()` before each reading.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ClockReading:
    """The process' clocks at one instant, or the difference of two: seconds, involuntary context switches."""

    wall_s: float
    cpu_s: float
    switches: int

    @classmethod
    def now(cls) -> ClockReading:
        """Read all clocks; the wall clock is monotonic."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), time.process_time(), usage.ru_nivcsw)

    def since(self, start: ClockReading) -> ClockReading:
        """Return the difference to an earlier reading."""
        return ClockReading(
            self.wall_s - start.wall_s, self.cpu_s - start.cpu_s, self.switches - start.switches
        )


MAX_WAIT_SHARE, MAX_STEAL_SHARE = 0.1, 0.02
"""A timing is disturbed if the process waited for more than this share of its wall time, or if a hypervisor
gave more than this share of all processors' time to others. A quiet machine stays below 0.03 and 0.005."""


def disturbances(
    wall_s: float, cpu_s: float, steal: float | None, computes: bool = True, concurrent_runs: int = 0
) -> list[str]:
    """Describe, one sentence each, why a timing may be too long; empty for a clean one.

    Work that computes all the time uses as much CPU time as wall time, or more with several threads; less
    means that other processes had its cores. `computes` is false for a process that waits for a device.
    `steal` is None if the system does not report it. `concurrent_runs` is how many other runs of the same
    command ran meanwhile: they take caches, memory and clock rate even if each has cores of its own.
    """
    reasons = [f"it shared the machine with {concurrent_runs} more at a time"] if concurrent_runs else []
    wait_share = 1.0 - cpu_s / wall_s if wall_s > 0 else 0.0
    if computes and wait_share > MAX_WAIT_SHARE:
        reasons.append(f"it had no core for {wait_share:.0%} of its time")
    if steal is not None and steal > MAX_STEAL_SHARE:
        reasons.append(f"a hypervisor gave {steal:.1%} of the processors' time to others")
    return reasons


def reset_peak_memory() -> bool:
    """Reset the peak of `peak_memory_mb`; False if the system can't (the peak is then the whole process')."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory_mb() -> float:
    """Return the largest resident set of this process since the last reset, in MB (10^6 bytes)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass  # no /proc on this system: the next line asks the kernel the older way
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def load_average() -> float:
    """Return the machine's load average over the last minute."""
    return os.getloadavg()[0]
