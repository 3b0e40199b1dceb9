"""Matrix limits on disk: the highest rate of matrix products measured for a device."""

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
    """What a matrix limit is a property of; `versions` are those of the packages that multiply."""

    device: str
    cpu: str
    cores: int
    architecture: str
    cards: tuple[str, ...]
    versions: dict[str, Any]

    @classmethod
    def here(cls, device: str, versions: Mapping[str, str]) -> Device:
        """A device (`cpu`, `cuda`, `cuda:1`) of this machine; what concerns cards is no part of a CPU."""
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
    """The highest rate that was measured: in GFLOP/s, with matrices of `size` rows, at a load average.

    `disturbed` where other work had the cores each time: the true limit may be higher.
    """

    precision: str
    threads: int
    gflops: float
    size: int
    framework: str
    measured: str
    load: float
    disturbed: bool


@dataclass(frozen=True)
class _StoredLimits:
    device: Device
    limits: tuple[Limit, ...]


def limit(results_dir: Path, device: Device, precision: str, threads: int) -> Limit | None:
    """The matrix limit as it is kept in a results folder, None where it was not measured."""
    key = precision, threads
    return next((k for k in limits(results_dir, device) if (k.precision, k.threads) == key), None)


def limits(results_dir: Path, device: Device) -> tuple[Limit, ...]:
    """All limits of a device that are kept in a results folder."""
    # a file that can't be read is as good as none: the limits are measured anew and it is replaced
    with contextlib.suppress(ConfigError, ValueError):
        plain = read_json(_path(results_dir, device))
        return parse(_StoredLimits, plain).limits if plain is not None else ()
    return ()


def keep(results_dir: Path, device: Device, found: Limit) -> Limit:
    """Keep a limit, unless a higher one was measured before; returns the one that is kept."""
    key = found.precision, found.threads
    known = limits(results_dir, device)
    same = [found, *(k for k in known if (k.precision, k.threads) == key)]
    best = max(same, key=lambda k: k.gflops)
    best = replace(best, disturbed=all(k.disturbed for k in same))
    others = [k for k in known if (k.precision, k.threads) != key]
    path = _path(results_dir, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, to_plain(_StoredLimits(device, (*others, best))))
    return best


def _path(results_dir: Path, device: Device) -> Path:
    return results_dir / "machine" / f"{device.id}.json"
