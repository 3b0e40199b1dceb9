"""Checkpoints: the state of a run in the middle of its training, from which it resumes after a kill.

A checkpoint is one file with the weights, the training state and the events of all epochs so far, since a
kill between two files could leave them at different epochs. It is written under a temporary name, flushed to
disk and renamed, so that a complete checkpoint always exists and the next epoch is not timed while data is
still being written.
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
from harness.core.training import training_state
from harness.core.training.training_state import State

WEIGHTS, RUN, EVENTS = "weights/", "run_id", "events"


class UnusableError(Exception):
    """A checkpoint that cannot be read or belongs to another run; the message says which."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Canonical weights and the state after `epoch`; `events` are those so far, as in `events.jsonl`."""

    epoch: int
    weights: Weights
    state: State
    events: tuple[dict[str, Any], ...]


def save(
    path: Path, run_id: str, weights: Weights, state: State, events: Sequence[Mapping[str, Any]]
) -> None:
    """Write a run's checkpoint after the epoch of the last event; replaces an earlier one atomically."""
    texts = {RUN: run_id, EVENTS: json.dumps(list(events))}
    arrays = {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
    arrays |= training_state.to_arrays(state, int(events[-1]["epoch"]))
    arrays |= {f"{WEIGHTS}{name}": np.asarray(array) for name, array in weights.items()}
    npz.save(path, arrays, durable=True)


def load(path: Path, run_id: str) -> Checkpoint | None:
    """Read what `save` wrote; None if the file is missing. Raises UnusableError."""
    try:
        arrays = npz.load(path)
        owner, events_json = (arrays[name].tobytes().decode() for name in (RUN, EVENTS))
        state, epoch = training_state.from_arrays(arrays)
        events = tuple(json.loads(events_json))
        if events[-1]["epoch"] != epoch:
            raise ValueError(f"its events end with epoch {events[-1]['epoch']} and not with {epoch}")
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file can raise any exception
        raise UnusableError(f"it can't be read ({type(error).__name__}: {error})") from error
    if owner != run_id:
        raise UnusableError(f"it is of run {owner}")
    weights = {n.removeprefix(WEIGHTS): array for n, array in arrays.items() if n.startswith(WEIGHTS)}
    return Checkpoint(epoch, weights, state, events)


class CheckpointTimer:
    """Decides when a checkpoint is due; times are seconds of a monotonic clock."""

    def __init__(self, config: CheckpointConfig, now_s: float) -> None:
        self._every_epochs = config.every_epochs
        self._every_s = None if config.every_minutes is None else 60.0 * config.every_minutes
        self._last_s = now_s

    def is_due(self, epoch: int, now_s: float) -> bool:
        """Return whether a checkpoint is due at the end of an epoch; if due by time, restart that
        interval."""
        late = self._every_s is not None and now_s - self._last_s >= self._every_s
        if late:
            self._last_s = now_s
        return late or (self._every_epochs is not None and epoch % self._every_epochs == 0)
