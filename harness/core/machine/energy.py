"""Read the energy that a device used from its hardware counters; never an estimate.

A card's counter (NVML, millijoules since the driver was loaded) covers the whole card; the processor's (RAPL,
microjoules, for each package) covers all its cores and caches. A reading therefore belongs to the run only if
no other process used the device. The counters advance every millisecond (RAPL) to some tens of milliseconds
(NVML): readings of shorter epochs are meaningful only as a sum.
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
    """A device's counters, which only increase (some wrap around at a bound); `of` names the device."""

    source: str
    of: str

    def read(self) -> Mapping[str, int]:
        """Read each counter, in microjoules; raises OSError if that is no longer possible."""
        ...

    def joules_between(self, before: Mapping[str, int], after: Mapping[str, int]) -> float:
        """Return the joules used between two readings."""
        ...


@dataclass(frozen=True)
class Package:
    """A processor package's counter: its file, and the value after which it wraps around."""

    name: str
    file: Path
    bound_uj: int

    @classmethod
    def at(cls, folder: Path) -> Package:
        """Open the counter in a folder of the power capping framework; raises OSError or ValueError."""
        bound = int((folder / "max_energy_range_uj").read_text())
        package = cls((folder / "name").read_text().strip(), folder / "energy_uj", bound)
        package.read()
        return package

    def read(self) -> int:
        """Read the counter in microjoules; raises OSError or ValueError."""
        return int(self.file.read_text())


class RaplCounter:
    """The counters of all packages of the processor; `rapl` creates it where they exist."""

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

    def joules_between(self, before: Mapping[str, int], after: Mapping[str, int]) -> float:
        """See `EnergyCounter`. A counter that decreased is assumed to have wrapped around once.

        That takes about ten minutes at full power, so the reading of a longer epoch can be too low.
        """
        total_uj = 0
        for key, package in self._packages.items():
            difference = after[key] - before[key]
            total_uj += difference if difference >= 0 else difference + package.bound_uj
        return total_uj / 1e6


def rapl(system: Path | None = None) -> RaplCounter | None:
    """Open the processor's counters in a tree like /sys; None if it has none or one is not readable."""
    packages = {}
    try:
        # the parts of a package (cores, DRAM) have counters too, and so does the whole board (psys)
        for folder in sorted(((system or host.SYS) / POWERCAP).glob("*-rapl:*")):
            if (folder / "name").read_text().startswith("package"):
                packages[folder.name] = Package.at(folder)
    except (OSError, ValueError):
        return None
    return RaplCounter(packages) if packages else None


class GpuEnergyCounter:
    """The counter of the one card that this process sees, by NVIDIA's library; `own_card` creates it."""

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

    def joules_between(self, before: Mapping[str, int], after: Mapping[str, int]) -> float:
        """See `EnergyCounter`."""
        return (after["card"] - before["card"]) / 1e6

    def process_mb(self) -> float | None:
        """Return the card's memory that this process holds now, in MB (10^6 bytes).

        Includes its context and the reserve of its allocator. None if the driver does not report it, as in
        most containers.
        """
        try:
            processes = self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._library.NVMLError:
            return None
        own = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        return own[0] / 1e6 if own and own[0] else None


def own_card(environment: Mapping[str, str] = os.environ) -> GpuEnergyCounter | None:
    """Open the card that CUDA_VISIBLE_DEVICES leaves to this process.

    None if that is not exactly one card, or if NVIDIA's library is not installed.
    """
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
    """Measures the energy between `begin` and `end`; reports nothing without a counter or if it fails."""

    def __init__(self, counter: EnergyCounter | None) -> None:
        self._counter = counter
        self._before: Mapping[str, int] = {}

    def begin(self) -> None:
        """Read the counter."""
        self._before = self._read()

    def end(self) -> dict[str, float]:
        """Return `{"energy_j": joules}` since `begin`; empty without readings."""
        before, after = self._before, self._read()
        if self._counter is None or not before or not after:
            return {}
        return {"energy_j": self._counter.joules_between(before, after)}

    def describe(self) -> dict[str, str]:
        """Name the counter and its device; `n/a` if it cannot be read."""
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
