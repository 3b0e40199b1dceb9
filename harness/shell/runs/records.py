"""What packages of the shell pass around: runs that can start, and what came out of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.config.run_config import RunConfig
from harness.core.runs.run_folder import INTENDED, Job, RunFolder
from harness.core.runs.warm_start import WarmStart
from harness.shell.workers.key import WorkerKey


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start. Runs of equal `program` can share a compiled one, in equal workers."""

    config: RunConfig
    job: Job
    folder: RunFolder
    worker: WorkerKey
    start: WarmStart
    program: int

    @property
    def results_dir(self) -> Path:
        """The results folder, absolute."""
        return self.folder.path.parents[1]


@dataclass(frozen=True)
class Outcome:
    """A run and what came out of it; `skipped` if that was known before. `result` is that of the run's folder
    without its epochs, which would fill the memory in a long sweep."""

    config: RunConfig
    result: Mapping[str, Any]
    skipped: bool

    @property
    def finished(self) -> bool:
        """Whether the run trained to its end."""
        return bool(self.result["status"] == "finished")

    @property
    def failed(self) -> bool:
        """Whether something is wrong with it."""
        return self.result["status"] not in INTENDED
