"""Matrix limits on disk: the highest rate of matrix products that was measured for a device.

A worker measures a limit (`harness.core.machine.matmul`); this module stores it in a folder (the results, the
user's cache), in a file named after everything that it depends on: processor, cores, graphics cards, and the
versions of the framework that multiplied. Disturbances only lower a rate, so the highest one wins.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core.machine.host import cards, cpu_model
from harness.core.storage.digest import digest
from harness.core.storage.json_files import read_json, write_json
from harness.core.validation import ConfigError, parse, to_plain


@dataclass(frozen=True)
class Device:
    """The device that a limit belongs to; `versions` are those of the packages that multiply."""

    device: str
    cpu: str
    cores: int
    architecture: str
    cards: tuple[str, ...]
    versions: dict[str, Any]

    @classmethod
    def here(cls, device: str, versions: Mapping[str, str]) -> Device:
        """Describe a device (`cpu`, `cuda`, `cuda:1`) of this machine; a CPU's description leaves out
        cards."""
        on_card = device != "cpu"
        return cls(
            f"{device} of {os.environ['CUDA_VISIBLE_DEVICES']}"
            if on_card and "CUDA_VISIBLE_DEVICES" in os.environ
            else device,
            cpu_model(),
            os.cpu_count() or 1,
            platform.machine(),
            cards() if on_card else (),
            dict(versions),
        )

    @property
    def id(self) -> str:
        """12 hex digits: the name of its file."""
        return digest(to_plain(self), 12)


@dataclass(frozen=True)
class Limit:
    """The highest measured rate in GFLOP/s, reached with matrices of `size` rows.

    `load` is the machine's load average then. `disturbed`: other work used the cores in every measurement, so
    the true limit may be higher.
    """

    precision: str
    threads: int
    gflops: float
    size: int
    framework: str
    measured: str
    load: float
    disturbed: bool

    @property
    def _key(self) -> tuple[str, int]:
        return self.precision, self.threads


@dataclass(frozen=True)
class _StoredLimits:
    device: Device
    limits: tuple[Limit, ...]


def read_limit(results_dir: Path, device: Device, precision: str, threads: int) -> Limit | None:
    """Read the limit for a precision and number of threads from a results folder; None if not measured."""
    key = precision, threads
    return next((limit for limit in read_limits(results_dir, device) if limit._key == key), None)


def read_limits(results_dir: Path, device: Device) -> tuple[Limit, ...]:
    """Read all limits of a device from a results folder."""
    # an unreadable file counts as missing: the limits are measured again and it is replaced
    with contextlib.suppress(ConfigError, ValueError):
        plain = read_json(_path(results_dir, device))
        return parse(_StoredLimits, plain).limits if plain is not None else ()
    return ()


def store_limit(results_dir: Path, device: Device, limit: Limit) -> Limit:
    """Store a limit unless the stored one is higher; return the one that is stored in the end."""
    stored = read_limits(results_dir, device)
    same = [limit, *(other for other in stored if other._key == limit._key)]
    best = max(same, key=lambda each: each.gflops)
    best = replace(best, disturbed=all(each.disturbed for each in same))
    others = [other for other in stored if other._key != limit._key]
    path = _path(results_dir, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, to_plain(_StoredLimits(device, (*others, best))))
    return best


def _path(results_dir: Path, device: Device) -> Path:
    return results_dir / "machine" / f"{device.id}.json"
