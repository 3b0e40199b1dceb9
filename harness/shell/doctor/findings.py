"""What the doctor finds, as data: one dataclass for each part of the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.core.machine.matmul_limits import Limit
from harness.core.machine.noise import Noise
from harness.core.runs.autotune import TunedExecution
from harness.shell.environment.cards import Card


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be; `broken` where something can't be used at all because of it."""

    what: str
    advice: str
    broken: bool = False


@dataclass(frozen=True)
class FrameworkState:
    """A framework: what its interpreter has of it, and what its workers say.

    `install` is the command that brings what is missing. `devices` are what it sees by the device that it was
    asked for; `environment` is what its adapter says of itself on the CPU.
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
    """The machine; None and empty where it doesn't say. Memory in MB (10^6 bytes): all, and available.

    `quota` is the cores' worth of time that control groups leave us, `load` the average of the last minute.
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
    """The matrix limit of a device; `new` where it was measured just now."""

    device: str
    limit: Limit
    new: bool


@dataclass(frozen=True)
class Storage:
    """Where results go. `tracked` are the runs in MLflow's database, None where there is no database yet."""

    results_dir: str
    writable: bool
    free_gb: float
    runs: int
    store: str
    tracked: int | None


@dataclass(frozen=True)
class Findings:
    """All of it. `extras` are what is not installed, with the command that brings it, `choices` what is kept
    of `execution=best`, of earlier versions too."""

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
        """Whether nothing is broken."""
        return not any(problem.broken for problem in self.problems)
