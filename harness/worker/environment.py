"""Where a run takes place, as its result says it: the device and its counters, the machine, the packages.

What frameworks say of themselves comes from their adapters; this is what all have in common, found once for a
worker's life as far as it can't change.
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
FOR_CARDS = re.compile(r"nvidia-|jax-cuda")  # how packages are called that bring CUDA, by whichever extra


@functools.cache
def card() -> GpuEnergyCounter | None:
    """The card that this worker has to itself, where NVIDIA's library knows it."""
    return energy.own_card()


def meter(device: str) -> EnergyMeter:
    """What measures the energy of a device, `cpu` or `cuda`."""
    return EnergyMeter(energy.rapl() if device == "cpu" else card())


def describe(
    job: Job, plan: Plan, adapter: Adapter, settings: dict[str, object], meter: EnergyMeter
) -> dict[str, Any]:
    """What actually runs, and where; the most telling first, since MLflow gets no more than that."""
    owned = card() if plan.device != "cpu" else None
    return {
        "execution": plan.execution,
        "precision": plan.precision,
        "settings": settings,
        **({"device_name": owned.of, "driver": owned.driver} if owned else {}),
        "energy": meter.describe(),
        **adapter.environment(),
        "versions": job.versions,
        "revisions": job.revisions,
        **({"calibration": job.calibration} if job.calibration is not None else {}),
        **_machine(job.beside),
        "packages": dict(packages(tuple(job.config["framework"]["distributions"]))),
    }


def device_memory(adapter: Adapter) -> dict[str, float]:
    """The card's memory as metrics: what the framework had in use at most, and what the process holds now."""
    found = {"memory/device_peak_mb": adapter.device_peak_mb()}
    if found["memory/device_peak_mb"] is not None and (owned := card()) is not None:
        found["memory/device_process_mb"] = owned.process_mb()
    return {name: value for name, value in found.items() if value is not None}


def _machine(beside: int) -> dict[str, Any]:
    memory = host.memory_mb()
    return {
        "cpu": host.cpu_model(),
        "affinity": host.cpu_list(),
        "cores": os.cpu_count(),
        "workers": 1 + beside,
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
    """The versions of distributions and of all that they need, as far as they are installed here; NumPy too,
    which not all of them ask for."""
    found: dict[str, str] = {}
    left = [*names, "numpy", *(name for name in _installed() if FOR_CARDS.match(name))]
    while left:
        name = _plain(left.pop())
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # what another system or another Python needs
        found[name] = distribution.version
        always = (need for need in distribution.requires or () if "extra ==" not in need)
        left += (match[0] for match in map(NAME.match, always) if match)
    return tuple(sorted(found.items()))


def _installed() -> Iterable[str]:
    return (str(one.metadata["Name"]) for one in importlib.metadata.distributions() if one.metadata["Name"])


def _plain(name: str) -> str:
    """The name as indexes write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
