"""The environment part of a result: the device and its counters, the machine, the installed packages.

Each adapter describes its own framework; this module adds what all of them share. What cannot change is
looked up once per worker.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from typing import Any

from harness.core.adapter import Adapter, Plan
from harness.core.machine import energy, host
from harness.core.machine.energy import EnergyMeter, GpuEnergyCounter
from harness.core.runs.run_folder import Job

NAME = re.compile(r"[\w.-]+")
CUDA_PACKAGES = re.compile(r"nvidia-|jax-cuda")  # names of packages that contain CUDA, installed by any extra


@functools.cache
def card() -> GpuEnergyCounter | None:
    """The graphics card of this worker, if NVIDIA's library knows it."""
    return energy.own_card()


def meter(device: str) -> EnergyMeter:
    """The energy meter of a device, `cpu` or `cuda`."""
    return EnergyMeter(energy.rapl() if device == "cpu" else card())


def describe(
    job: Job, plan: Plan, adapter: Adapter, settings: dict[str, object], meter: EnergyMeter
) -> dict[str, Any]:
    """The `environment` of a result: what runs, and where.

    The most informative keys come first, because MLflow receives a limited number of them.
    """
    gpu = card() if plan.device != "cpu" else None
    return {
        "execution": plan.execution,
        "precision": plan.precision,
        "settings": settings,
        **({"device_name": gpu.of, "driver": gpu.driver} if gpu else {}),
        "energy": meter.describe(),
        **adapter.environment(),
        "versions": job.versions,
        "revisions": job.revisions,
        **({"calibration": job.calibration} if job.calibration is not None else {}),
        **_machine(job.beside),
        "packages": dict(packages(tuple(job.config["framework"]["distributions"]))),
    }


def device_memory(adapter: Adapter) -> dict[str, float]:
    """The card's memory as metrics, in MB: the framework's peak, and what the process holds now."""
    values = {"memory/device_peak_mb": adapter.device_peak_mb()}
    if values["memory/device_peak_mb"] is not None and (gpu := card()) is not None:
        values["memory/device_process_mb"] = gpu.process_mb()
    return {name: value for name, value in values.items() if value is not None}


def _machine(concurrent_runs: int) -> dict[str, Any]:
    memory = host.memory_mb()
    return {
        "cpu": host.cpu_model(),
        "affinity": host.cpu_list(),
        "cores": os.cpu_count(),
        "workers": 1 + concurrent_runs,
        "memory_mb": memory[0] if memory else None,
        "governors": list(host.governors()),
        "bf16_instructions": list(host.bf16_instructions()),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "host": platform.node(),
    }


@functools.cache
def packages(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The versions of distributions and of their installed dependencies, sorted by name.

    NumPy is always included, because not every distribution requires it.
    """
    versions: dict[str, str] = {}
    pending = [*names, "numpy", *(name for name in _installed() if CUDA_PACKAGES.match(name))]
    while pending:
        name = _normalised(pending.pop())
        if name in versions:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # required on another system or by another version of Python
        versions[name] = distribution.version
        requirements = (text for text in distribution.requires or () if "extra ==" not in text)
        pending += (match[0] for match in map(NAME.match, requirements) if match)
    return tuple(sorted(versions.items()))


def _installed() -> Iterable[str]:
    return (str(one.metadata["Name"]) for one in importlib.metadata.distributions() if one.metadata["Name"])


def _normalised(name: str) -> str:
    """The name as package indexes write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
