"""NVIDIA's cards as their management library describes them, where it is installed.

`pynvml` (the package nvidia-ml-py) is no requirement: frameworks find a card without it. Without it, names
come from the driver and the rest is not known.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness import machine


@dataclass(frozen=True)
class Card:
    """A card; `memory_mb` is in 10^6 bytes, `energy` says whether its total energy can be read. None: n/a."""

    name: str
    driver: str | None = None
    memory_mb: float | None = None
    energy: bool | None = None


def cards() -> tuple[Card, ...]:
    """All cards of the machine, whether a framework can use them or not."""
    with _library() as nvml:
        if nvml is not None:
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
            return tuple(_card(nvml, handle, driver) for handle in handles)
    return tuple(map(Card, machine.cards()))


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """NVML, initialised; None where it, or a driver for it, is not there."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        yield None
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _card(nvml: Any, handle: Any, driver: str) -> Card:
    memory_mb = energy = None
    with contextlib.suppress(nvml.NVMLError):
        memory_mb = nvml.nvmlDeviceGetMemoryInfo(handle).total / 1e6
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        energy = True
    except nvml.NVMLError:
        energy = False
    return Card(_text(nvml.nvmlDeviceGetName(handle)), driver, memory_mb, energy)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
