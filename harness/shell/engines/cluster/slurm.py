"""Slots as Slurm jobs: each executes runs through a shared folder until none are left.

One job per run would import the framework for each run and fill the queue. Here at most `jobs` jobs share
all runs.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.core.validation import ConfigError, Mistake
from harness.shell.engines.cluster.options import KEY, SlurmOptions, require
from harness.shell.engines.cluster.protocol import SlotResources
from harness.shell.engines.cluster.slurm_scheduler import COMMANDS, SlurmScheduler
from harness.shell.engines.cluster.slurm_slot import SlurmSlot
from harness.shell.engines.slots import differing_keys
from harness.shell.runs.records import PreparedRun


class SlurmCluster:
    """See `harness.shell.engines.cluster.protocol.Cluster`."""

    startup_wait_s = 10.0
    wait_s = 0.0  # a job that has not started yet is in the queue

    def __init__(self, options: SlurmOptions) -> None:
        self._options = options
        self._scheduler = SlurmScheduler(options)
        self._resources = SlotResources(1, False)
        self._folder: Path | None = None
        self._slots: list[SlurmSlot] = []

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError if a program is missing, or if jobs would disturb each other's speeds."""
        require("submitit", "slurm")
        options, mistakes = self._options, []
        missing = [name for name in COMMANDS if options.cluster == "slurm" and shutil.which(name) is None]
        if missing:
            problem = f"{', '.join(missing)} not found: this machine does not belong to a Slurm cluster"
            mistakes.append(Mistake("hydra/launcher", problem, f"{KEY}.cluster=local to try it without"))
        if any(run.config.workers > 1 for run in runs):
            problem = "with Slurm, the number of jobs sets how many runs execute at a time"
            mistakes.append(Mistake("workers", problem, f"workers=1 {KEY}.jobs=<number>"))
        compared = differing_keys(runs)
        alone = any(run.config.timings == "alone" for run in runs)
        if compared and alone and options.jobs > 1 and not options.exclusive:
            problem = f"the runs differ in {', '.join(compared)}, and {options.jobs} jobs may share a node"
            advice = f"{KEY}.exclusive=true (nodes of their own); {KEY}.jobs=1; or timings=shared"
            mistakes.append(Mistake(f"{KEY}.jobs", f"{problem}: they would disturb the speeds", advice))
        if mistakes:
            raise ConfigError(mistakes)

    def connect(self, resources: SlotResources, results_dir: Path) -> None:
        """Create the folder that is shared with the jobs; raises ConfigError if that fails."""
        self._resources = resources
        if self._folder is None:
            parent = Path(self._options.folder or results_dir / "slurm").resolve()
            folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                problem = f"{str(parent)!r} can't be written to: {error.strerror}"
                mistake = Mistake(f"{KEY}.folder", problem, "a folder that the nodes see")
                raise ConfigError([mistake]) from error
            self._folder = folder

    def slot_ids(self) -> list[str]:
        """One for each job that may run at a time."""
        return [f"job {number}" for number in range(1, self._options.jobs + 1)]

    def open(self, slot_id: str, give_up: Callable[[], bool]) -> SlurmSlot | None:
        """See `Cluster`."""
        assert self._folder is not None
        folder = self._folder / secrets.token_hex(4)
        folder.mkdir()
        job = self._scheduler.submit(folder, self._resources)
        slot = SlurmSlot(self._scheduler, job, folder, self._jobs_on)
        self._slots.append(slot)
        try:
            if slot.wait_started(give_up, self._options.silence_s):
                return slot
        except BaseException:
            slot.close(kill=True)
            raise
        slot.close(kill=True)
        return None

    def close(self, kill: bool) -> None:
        """End all jobs and remove the folder; with `kill` it stays, for the logs in it."""
        for slot in self._slots:
            slot.close(kill=True)
        if self._folder is not None and not kill:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _jobs_on(self, host: str) -> int:
        return sum(slot.host == host and not slot.closed for slot in self._slots)
