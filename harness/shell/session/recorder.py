"""Passes what an engine reports on to run folders, MLflow and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.config.run_config import RunConfig
from harness.core.validation import to_plain
from harness.shell.certificates.store import CertificateStore
from harness.shell.engines.lost_runs import is_attempt
from harness.shell.reports.progress import Reporter
from harness.shell.runs.records import PreparedRun
from harness.shell.tracking.background import TrackingThread


class RunRecorder:
    """Passes on what an engine says: to the runs' folders, to MLflow, to people."""

    def __init__(
        self,
        tracking: Mapping[tuple[str, str | None], TrackingThread],
        reporter: Reporter,
        names: Sequence[str],
        runs: Sequence[PreparedRun],
    ) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self._tracking = tracking
        self._reporter = reporter
        self._labels = dict(zip((run.job.run_id for run in runs), names, strict=True))
        self._begun: dict[str, Mapping[str, Any]] = {}

    def started(self, run: PreparedRun, slot: str) -> None:
        """Make the run's folder."""
        run_id = run.job.run_id
        self._begun.pop(run_id, None)  # of an attempt that was lost
        run.folder.write_job(to_plain(run.job))
        CertificateStore(run.results_dir).copy_to(run.folder.path, (run.job.certificate or {}).get("id"))
        epochs, before = run.config.train.epochs, run.start.epochs
        self._reporter.started(run_id, self._labels[run_id], slot, epochs, before)

    def event(self, run: PreparedRun, event: Mapping[str, Any]) -> None:
        """Log what a worker says."""
        tracking = self._tracking[store_key(run.config)]
        if event["event"] == "started":
            self._begun[run.job.run_id] = event
            tracking.begin(run.folder.path, to_plain(run.job))
        elif event["event"] == "epoch":
            tracking.epochs(run.folder.path, [event])
            self._reporter.epoch(run.job.run_id, event)

    def ended(self, run: PreparedRun, result: Mapping[str, Any]) -> None:
        """Log what came out of a run."""
        run_id, tracking = run.job.run_id, self._tracking[store_key(run.config)]
        if result and is_attempt(run.folder, self._begun.pop(run_id, None)):
            tracking.finish(run.folder.path, result)
        else:  # the worker never started it, or another sweep finished it
            tracking.sync(run.folder.path)
        self.results[run_id] = without_epochs(result)
        if result:  # none of a run that was interrupted while another sweep did it
            self._reporter.ended(run_id, result)

    def note(self, text: str) -> None:
        """Tell people."""
        self._reporter.note(text)


def without_epochs(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "epochs"}


def store_key(config: RunConfig) -> tuple[str, str | None]:
    return config.results_dir, config.tracking.uri
