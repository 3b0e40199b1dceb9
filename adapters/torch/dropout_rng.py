"""The state of the random number generator that dropout draws from: torch's global one of the device.

A run's training state contains it, so that a resumed run draws the masks that it would have drawn without the
interruption.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from harness.core.training.training_state import stream_seed


def restore(device: torch.device, seed: int, steps: int, masks: Mapping[str, NDArray[Any]]) -> None:
    """Set the generator for a run that continues after `steps` steps.

    Uses the state that `masks` has for this type of device, or else seeds the generator.
    """
    torch.manual_seed(stream_seed(seed, steps))
    saved = masks.get(_name(device))
    if saved is not None:
        rng_state = torch.from_numpy(saved.copy())
        if device.type == "cuda":
            torch.cuda.set_rng_state(rng_state, device)
        else:
            torch.set_rng_state(rng_state)


def state(device: torch.device) -> dict[str, NDArray[Any]]:
    """Return the generator's state, uint8, under the name of the device's type."""
    rng_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return {_name(device): rng_state.numpy().copy()}


def _name(device: torch.device) -> str:
    return f"torch.{device.type}"  # a key of saved training states
