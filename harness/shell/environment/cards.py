"""NVIDIA's graphics cards, as described by NVIDIA's management library if it is installed.

`pynvml` (the package nvidia-ml-py) is optional: frameworks find a card without it. Without it, names come
from the driver and the other fields are unknown. Cards are numbered as in nvidia-smi, by their position on
the bus.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.core.machine import host
from harness.core.machine.nvml import library, text
from harness.core.machine.precision import Capability

VISIBLE = "CUDA_VISIBLE_DEVICES"  # which cards a process may use, by number or by UUID, where it is set


@dataclass(frozen=True)
class Card:
    """A card. `memory_mb` is in 10^6 bytes; `energy` says whether its total energy can be read; `id` is its
    name in CUDA_VISIBLE_DEVICES; `capability` is its compute capability. None: not available."""

    name: str
    driver: str | None = None
    memory_mb: float | None = None
    energy: bool | None = None
    id: str = ""
    capability: Capability | None = None


def cards() -> tuple[Card, ...]:
    """All cards of the machine, whether a framework can use them or not."""
    with library() as nvml:
        if nvml is not None:
            driver = text(nvml.nvmlSystemGetDriverVersion())
            handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
            return tuple(_card(nvml, handle, driver, str(n)) for n, handle in enumerate(handles))
    return tuple(Card(name, id=str(number)) for number, name in enumerate(host.cards()))


def visible_cards(environment: Mapping[str, str] = os.environ) -> tuple[Card, ...]:
    """The cards that CUDA_VISIBLE_DEVICES selects, in its order; all cards if it is not set.

    As in CUDA, the first entry that matches no card ends the list. An entry that names a part of a card
    (MIG), or a UUID on a machine whose UUIDs are unknown, is accepted without any other fields.
    """
    every = cards()
    if VISIBLE not in environment:
        return every
    selected: list[Card] = []
    uuids_known = any(card.id.startswith("GPU-") for card in every)
    for entry in filter(None, map(str.strip, environment[VISIBLE].split(","))):
        if entry.startswith("MIG-") or (entry.startswith("GPU-") and every and not uuids_known):
            selected.append(Card(entry, id=entry))
        elif entry.isdigit() and int(entry) < len(every):
            selected.append(every[int(entry)])
        elif matches := [card for card in every if entry.startswith("GPU-") and card.id.startswith(entry)]:
            selected.append(matches[0])
        else:
            break
    return tuple(selected)


def _card(nvml: Any, handle: Any, driver: str, number: str) -> Card:
    memory_mb = capability = None
    id_ = number
    with contextlib.suppress(nvml.NVMLError):
        memory_mb = nvml.nvmlDeviceGetMemoryInfo(handle).total / 1e6
    with contextlib.suppress(nvml.NVMLError):
        id_ = text(nvml.nvmlDeviceGetUUID(handle))
    with contextlib.suppress(nvml.NVMLError):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        capability = int(major), int(minor)
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        energy = True
    except nvml.NVMLError:
        energy = False
    return Card(text(nvml.nvmlDeviceGetName(handle)), driver, memory_mb, energy, id_, capability)
