"""The stream of random numbers that dropout draws from: torch's own of the device, which is one for all.

Its place is kept with a run's state, so that a run that goes on draws the masks that it would have drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from harness.core.training.training_state import stream_seed


def start(device: torch.device, seed: int, steps: int, masks: Mapping[str, NDArray[Any]]) -> None:
    """Begin the stream of a run that goes on after `steps` steps: at the place that `masks` has of this kind
    of device, else anew from the seed."""
    torch.manual_seed(stream_seed(seed, steps))
    kept = masks.get(_name(device))
    if kept is not None:
        place_ = torch.from_numpy(kept.copy())
        if device.type == "cuda":
            torch.cuda.set_rng_state(place_, device)
        else:
            torch.set_rng_state(place_)


def place(device: torch.device) -> dict[str, NDArray[Any]]:
    """Where the stream is, uint8, by the name of its kind."""
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return {_name(device): state.numpy().copy()}


def _name(device: torch.device) -> str:
    return f"torch.{device.type}"
