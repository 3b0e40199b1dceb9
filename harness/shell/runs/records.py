"""What the packages of the shell pass to each other: runs that can start, and what came out of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.adapter import Plan
from harness.core.config.run_config import RunConfig
from harness.core.runs.run_folder import INTENDED, Job, RunFolder
from harness.core.runs.warm_start import WarmStart
from harness.shell.workers.key import WorkerKey


@dataclass(frozen=True)
class RunTask:
    """What a slot needs to execute a run, on this machine or on another one.

    Runs of equal `program` can share a compiled program in workers of equal key.
    """

    config: RunConfig
    job: Job
    folder: RunFolder
    worker: WorkerKey
    program: int

    @property
    def results_dir(self) -> Path:
        """The results folder, absolute."""
        return self.folder.path.parents[1]


@dataclass(frozen=True)
class PreparedRun(RunTask):
    """A run that was checked and can start: `plan` holds its resolved network, `start` its initial weights'
    origin."""

    start: WarmStart
    plan: Plan


@dataclass(frozen=True)
class Outcome:
    """A run and its result; `skipped` if an earlier command had finished it.

    `result` is the content of `result.json` without the epochs, which would fill the memory in a long sweep.
    """

    config: RunConfig
    result: Mapping[str, Any]
    skipped: bool

    @property
    def finished(self) -> bool:
        """Whether the run trained to its end."""
        return bool(self.result["status"] == "finished")

    @property
    def failed(self) -> bool:
        """Whether the run ended other than finished or pruned."""
        return self.result["status"] not in INTENDED
