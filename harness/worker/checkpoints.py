"""The checkpoints of one run: where it was when the attempt before this one broke off, and where it is now.

A checkpoint is a help and no result: one that can't be used, or can't be written, is noted in the run's log,
and the run goes on without.
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
    """Those in a run's folder. The minutes between them count from when this is made."""

    def __init__(self, folder: RunFolder, config: CheckpointConfig) -> None:
        self._folder = folder
        self._pace = CheckpointTimer(config, time.monotonic())
        self._events: list[Mapping[str, Any]] = []

    def take_up(self, trainer: Trainer, weights: Weights, state: State | None) -> Checkpoint | None:
        """Load the last checkpoint into the trainer. Where there is none that can be used, gives None, and
        the trainer has the weights and the state that the run begins with."""
        try:
            found = checkpoint.load(self._folder.checkpoint, self._folder.run_id)
            if found is not None:
                trainer.load(found.weights, found.state)
        except (UnusableError, ValueError) as error:  # a trainer's ValueError: other weights than its own
            trainer.load(weights, state)
            self._folder.set_checkpoint_aside()
            print(f"the checkpoint is set aside as {UNUSABLE}: {error}", file=sys.stderr, flush=True)
            return None
        return found

    def add(self, event: Mapping[str, Any]) -> None:
        """An epoch has ended."""
        self._events.append(event)

    def write_if_due(self, trainer: Trainer) -> None:
        """Write one where the last epoch asks for it. No clock of the run's is running meanwhile."""
        if not self._pace.is_due(int(self._events[-1]["epoch"]), time.monotonic()):
            return
        path, run_id = self._folder.checkpoint, self._folder.run_id
        try:
            checkpoint.save(path, run_id, trainer.weights(), trainer.state(), self._events)
        except OSError as error:
            print(f"no checkpoint was written: {error}", file=sys.stderr, flush=True)
