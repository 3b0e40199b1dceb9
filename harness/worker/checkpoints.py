"""Read and write the checkpoints of one run.

Checkpoints are optional: one that cannot be used or written is reported in the run's log, and the run
continues without it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from harness.core.adapter import Trainer, Weights
from harness.core.config.run_config import CheckpointConfig
from harness.core.runs import checkpoint
from harness.core.runs.checkpoint import Checkpoint, CheckpointTimer, UnusableError
from harness.core.runs.run_folder import UNUSABLE, RunFolder
from harness.core.training.training_state import State


class Checkpoints:
    """The checkpoints in a run's folder; the interval between them counts from this object's creation."""

    def __init__(self, folder: RunFolder, config: CheckpointConfig) -> None:
        self._folder = folder
        self._timer = CheckpointTimer(config, time.monotonic())
        self._events: list[Mapping[str, Any]] = []

    def restore(self, trainer: Trainer, weights: Weights, state: State | None) -> Checkpoint | None:
        """Load the last checkpoint into the trainer and return it.

        Returns None without a usable checkpoint; the trainer then has the run's initial weights and state.
        """
        try:
            stored = checkpoint.load(self._folder.checkpoint, self._folder.run_id)
            if stored is not None:
                trainer.load(stored.weights, stored.state)
        except (UnusableError, ValueError) as error:  # a trainer raises ValueError for weights of others
            trainer.load(weights, state)
            self._folder.set_checkpoint_aside()
            print(f"the checkpoint is set aside as {UNUSABLE}: {error}", file=sys.stderr, flush=True)
            return None
        return stored

    def add(self, event: Mapping[str, Any]) -> None:
        """Record the event of an epoch that has ended."""
        self._events.append(event)

    def write_if_due(self, trainer: Trainer) -> None:
        """Write a checkpoint if the interval has passed; the caller is not timing anything."""
        if not self._timer.is_due(int(self._events[-1]["epoch"]), time.monotonic()):
            return
        path, run_id = self._folder.checkpoint, self._folder.run_id
        try:
            checkpoint.save(path, run_id, trainer.weights(), trainer.state(), self._events)
        except OSError as error:
            print(f"no checkpoint was written: {error}", file=sys.stderr, flush=True)
