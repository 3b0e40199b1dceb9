"""Where a run is in the middle of its training, in one file, from which it goes on after a kill.

One file, because two could be of different epochs when the kill comes between them: the weights, the state
of the training and the events of the epochs up to here are written under another name and renamed. It is on
the disk before it gets its name, so that what replaces the last one is never less than that, and so that the
next epoch is not timed beside the writing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.adapter import Weights
from harness.core.config.run_config import CheckpointConfig
from harness.core.storage import npz
from harness.core.training import training_state as state
from harness.core.training.training_state import State

WEIGHTS, RUN, EVENTS = "weights/", "run_id", "events"


class UnusableError(Exception):
    """A checkpoint that can't be read, or is not this run's; the message says which."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Canonical weights and the state after `epoch`; `events` are those of the epochs so far, as they stand
    in `events.jsonl`."""

    epoch: int
    weights: Weights
    state: State
    events: tuple[dict[str, Any], ...]


def save(path: Path, run_id: str, weights: Weights, now: State, events: Sequence[Mapping[str, Any]]) -> None:
    """Write where a run is after the last of the events; what was there is replaced at once or not at all."""
    texts = {RUN: run_id, EVENTS: json.dumps(list(events))}
    arrays = {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
    arrays |= state.to_arrays(now, int(events[-1]["epoch"]))
    arrays |= {f"{WEIGHTS}{name}": np.asarray(array) for name, array in weights.items()}
    npz.save(path, arrays, durable=True)


def load(path: Path, run_id: str) -> Checkpoint | None:
    """What `save` wrote, or None where there is no file; raises UnusableError."""
    try:
        arrays = npz.load(path)
        owner, events = (arrays[name].tobytes().decode() for name in (RUN, EVENTS))
        now, epoch = state.from_arrays(arrays)
        found = tuple(json.loads(events))
        if found[-1]["epoch"] != epoch:
            raise ValueError(f"its events end with epoch {found[-1]['epoch']} and not with {epoch}")
    except FileNotFoundError:
        return None
    except Exception as error:  # a file that was damaged raises whatever its reader comes upon
        raise UnusableError(f"it can't be read ({type(error).__name__}: {error})") from error
    if owner != run_id:
        raise UnusableError(f"it is of run {owner}")
    kept = {n.removeprefix(WEIGHTS): array for n, array in arrays.items() if n.startswith(WEIGHTS)}
    return Checkpoint(epoch, kept, now, found)


class CheckpointTimer:
    """When a checkpoint is due; times are seconds of a clock that never goes back."""

    def __init__(self, config: CheckpointConfig, now_s: float) -> None:
        self._every_epochs = config.every_epochs
        self._every_s = None if config.every_minutes is None else 60.0 * config.every_minutes
        self._last_s = now_s

    def is_due(self, epoch: int, now_s: float) -> bool:
        """Whether one is due at the end of an epoch; those by the clock are counted from there on."""
        late = self._every_s is not None and now_s - self._last_s >= self._every_s
        if late:
            self._last_s = now_s
        return late or (self._every_epochs is not None and epoch % self._every_epochs == 0)
