"""The findings of `evenbench doctor`: one dataclass per part of the report.

Field names are keys of `evenbench doctor --json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.core.machine.matmul_limits import Limit
from harness.core.machine.noise import Noise
from harness.core.runs.autotune import TunedExecution
from harness.shell.environment.cards import Card


@dataclass(frozen=True)
class Problem:
    """A problem with advice; `broken` if it makes something unusable."""

    what: str
    advice: str
    broken: bool = False


@dataclass(frozen=True)
class FrameworkState:
    """A framework: its installed packages, and what its workers report.

    `install` is the command that installs missing packages. `devices` are the devices that it sees, by the
    requested device; `environment` is what its adapter reports on the CPU.
    """

    name: str
    python: str
    versions: dict[str, str | None]
    install: str = ""
    works: bool = False
    import_s: float | None = None
    executions: tuple[str, ...] = ()
    devices: dict[str, list[str]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """The machine; None or empty if unknown. Memory in MB (10^6 bytes): total and available.

    `quota` is the number of cores that control groups allow this process, `load` the average of the last
    minute.
    """

    cpu: str
    architecture: str
    cores: int
    affinity: int
    quota: float | None
    memory_mb: tuple[float, float] | None
    load: float
    governors: tuple[str, ...]
    energy_counters: dict[str, bool]
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class DeviceLimit:
    """The matrix limit of a device; `new` if this command measured it."""

    device: str
    limit: Limit
    new: bool


@dataclass(frozen=True)
class Storage:
    """The results folder. `tracked` is the number of runs in MLflow's database, None without a database."""

    results_dir: str
    writable: bool
    free_gb: float
    runs: int
    store: str
    tracked: int | None


@dataclass(frozen=True)
class Findings:
    """All findings. `extras` maps missing extras to the command that installs each; `choices` are the stored
    results of `execution=best`, including those of earlier versions."""

    version: str
    python: str
    frameworks: tuple[FrameworkState, ...]
    extras: dict[str, str]
    host: Host
    limits: tuple[DeviceLimit, ...]
    choices: tuple[TunedExecution, ...]
    noise: Noise | None
    storage: Storage
    problems: tuple[Problem, ...]

    @property
    def well(self) -> bool:
        """Whether no problem makes something unusable."""
        return not any(problem.broken for problem in self.problems)
