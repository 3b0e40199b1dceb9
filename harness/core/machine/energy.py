"""The energy that a device took, from counters that it keeps itself; never an estimate.

A card's counter (NVML, millijoules since the driver was loaded) is that of the whole card; the processor's
(RAPL, microjoules, for each package) is that of all its cores and caches, whoever used them. So a reading is
the run's own only as far as nothing else was at work there. The counters are stepped on every millisecond
(RAPL) to some tens of them (NVML): what epochs shorter than that took means something only as a sum.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.core.machine import host, nvml

POWERCAP = Path("class/powercap")


class EnergyCounter(Protocol):
    """Counters that only go up, but for those that begin anew at a bound."""

    source: str
    of: str

    def read(self) -> Mapping[str, int]:
        """What each stands at, in microjoules; raises OSError where it can't be read any more."""
        ...

    def passed(self, before: Mapping[str, int], after: Mapping[str, int]) -> float:
        """The joules between two readings."""
        ...


@dataclass(frozen=True)
class Package:
    """A processor package's counter: its file, and the value after which it begins anew."""

    name: str
    file: Path
    bound_uj: int

    @classmethod
    def at(cls, folder: Path) -> Package:
        """What a folder of the power capping framework describes; raises OSError or ValueError."""
        bound = int((folder / "max_energy_range_uj").read_text())
        found = cls((folder / "name").read_text().strip(), folder / "energy_uj", bound)
        found.read()
        return found

    def read(self) -> int:
        """Microjoules; raises OSError or ValueError."""
        return int(self.file.read_text())


class RaplCounter:
    """All packages of the processor; use `rapl`, which says whether there are any."""

    source = "RAPL"

    def __init__(self, packages: Mapping[str, Package]) -> None:
        self._packages = packages
        self.of = ", ".join(package.name for package in packages.values())

    def read(self) -> Mapping[str, int]:
        """See `EnergyCounter`."""
        try:
            return {key: package.read() for key, package in self._packages.items()}
        except ValueError as error:
            raise OSError(f"no number: {error}") from error

    def passed(self, before: Mapping[str, int], after: Mapping[str, int]) -> float:
        """A counter that went down has begun anew, once: that takes it some ten minutes at full power, and of
        an epoch that takes longer the reading can be too low."""
        found = 0
        for key, package in self._packages.items():
            went = after[key] - before[key]
            found += went if went >= 0 else went + package.bound_uj
        return found / 1e6


def rapl(system: Path | None = None) -> RaplCounter | None:
    """The processor's counters in a tree like /sys; None where there are none, or one is not for us."""
    packages = {}
    try:
        # what is in a package (cores, DRAM) has counters of its own, and so has the whole board (psys)
        for folder in sorted(((system or host.SYS) / POWERCAP).glob("*-rapl:*")):
            if (folder / "name").read_text().startswith("package"):
                packages[folder.name] = Package.at(folder)
    except (OSError, ValueError):
        return None
    return RaplCounter(packages) if packages else None


class GpuEnergyCounter:
    """The one card that this process sees, by NVIDIA's library; use `own_card`."""

    source = "NVML"

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle
        self.of = nvml.text(library.nvmlDeviceGetName(handle))
        self.driver = nvml.text(library.nvmlSystemGetDriverVersion())

    def read(self) -> Mapping[str, int]:
        """See `EnergyCounter`."""
        try:
            return {"card": 1000 * int(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle))}
        except self._library.NVMLError as error:
            raise OSError(str(error)) from error

    def passed(self, before: Mapping[str, int], after: Mapping[str, int]) -> float:
        """See `EnergyCounter`."""
        return (after["card"] - before["card"]) / 1e6

    def process_mb(self) -> float | None:
        """The card's memory that this process holds now, in MB (10^6 bytes), its context and what its
        allocator keeps in reserve included; None where the driver doesn't tell, as in most containers."""
        try:
            processes = self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._library.NVMLError:
            return None
        ours = [one.usedGpuMemory for one in processes if one.pid == os.getpid()]
        return ours[0] / 1e6 if ours and ours[0] else None


def own_card(environment: Mapping[str, str] = os.environ) -> GpuEnergyCounter | None:
    """The card that CUDA_VISIBLE_DEVICES leaves to this process; None where that is not one of them, or
    NVIDIA's library is not there."""
    library = nvml.start()
    if library is None:
        return None
    try:
        entry = environment.get("CUDA_VISIBLE_DEVICES")
        only = "0" if library.nvmlDeviceGetCount() == 1 else ""
        card = only if entry is None else entry.partition(",")[0].strip()
        return GpuEnergyCounter(library, nvml.handle(library, card)) if card else None
    except library.NVMLError:
        return None


class EnergyMeter:
    """Says what a counter went up by between `begin` and `end`; nothing without one, or if it fails."""

    def __init__(self, counter: EnergyCounter | None) -> None:
        self._counter = counter
        self._before: Mapping[str, int] = {}

    def begin(self) -> None:
        """Read the counter."""
        self._before = self._read()

    def end(self) -> dict[str, float]:
        """`{"energy_j": joules}` since `begin`, empty where there is no reading."""
        before, after = self._before, self._read()
        if self._counter is None or not before or not after:
            return {}
        return {"energy_j": self._counter.passed(before, after)}

    def describe(self) -> dict[str, str]:
        """Whose energy it is; `n/a` where nothing can be read."""
        if self._counter is None or not self._read():
            return {"source": "n/a"}
        return {"source": self._counter.source, "of": self._counter.of}

    def _read(self) -> Mapping[str, int]:
        if self._counter is None:
            return {}
        try:
            return self._counter.read()
        except OSError:
            return {}
