"""Clocks, memory and the statistics of timings: raw values first, numbers made from them later.

Every reading takes wall time, CPU time and context switches together, because it is where they part that a
machine was busy with something else. Nothing here knows a framework: whoever times a device calls its
`sync()` before each reading.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ClockReading:
    """The process' clocks at one instant, or the difference of two: seconds, and involuntary switches."""

    wall_s: float
    cpu_s: float
    switches: int

    @classmethod
    def now(cls) -> ClockReading:
        """Read all clocks; the wall clock is monotonic."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), time.process_time(), usage.ru_nivcsw)

    def since(self, start: ClockReading) -> ClockReading:
        """What has passed since `start`."""
        return ClockReading(
            self.wall_s - start.wall_s, self.cpu_s - start.cpu_s, self.switches - start.switches
        )


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
