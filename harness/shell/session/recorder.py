"""Records what becomes of runs: in their folders, in MLflow and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.validation import to_plain
from harness.shell.certificates.store import CertificateStore
from harness.shell.engines.lost_runs import holds_attempt
from harness.shell.reports.progress import Reporter
from harness.shell.runs.records import PreparedRun
from harness.shell.session.stores import StoreThreads


class RunRecorder:
    """The session's `Listener` (`harness.shell.engines.protocol`). `results` holds one per ended run, by
    id."""

    def __init__(
        self, stores: StoreThreads, reporter: Reporter, runs: Sequence[PreparedRun], labels: Sequence[str]
    ) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self._stores = stores
        self._reporter = reporter
        self._labels = dict(zip((run.job.run_id for run in runs), labels, strict=True))
        self._attempts: dict[str, Mapping[str, Any]] = {}

    def started(self, run: PreparedRun, slot: str) -> None:
        """Create the run's folder with its job and its certificate."""
        run_id = run.job.run_id
        self._attempts.pop(run_id, None)  # of an attempt that was lost
        run.folder.write_job(to_plain(run.job))
        CertificateStore(run.results_dir).copy_to(run.folder.path, (run.job.certificate or {}).get("id"))
        epochs, before = run.config.train.epochs, run.start.epochs
        self._reporter.started(run_id, self._labels[run_id], slot, epochs, before)

    def event(self, run: PreparedRun, event: Mapping[str, Any]) -> None:
        """Log a worker's event."""
        tracking = self._stores.thread(run.config)
        if event["event"] == "started":
            self._attempts[run.job.run_id] = event
            tracking.begin(run.folder.path, to_plain(run.job))
        elif event["event"] == "epoch":
            tracking.epochs(run.folder.path, [event])
            self._reporter.epoch(run.job.run_id, event)

    def ended(self, run: PreparedRun, result: Mapping[str, Any]) -> None:
        """Log the result of a run; it is empty if the run was interrupted while another sweep did it."""
        run_id, tracking = run.job.run_id, self._stores.thread(run.config)
        if result and holds_attempt(run.folder, self._attempts.pop(run_id, None)):
            tracking.finish(run.folder.path, result)
        else:  # the worker never started the run, or another sweep finished it
            tracking.sync(run.folder.path)
        self.results[run_id] = without_epochs(result)
        if result:
            self._reporter.ended(run_id, result)

    def note(self, text: str) -> None:
        """Print a line."""
        self._reporter.note(text)


def without_epochs(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result without its epochs, which would fill the memory in a long sweep."""
    return {key: value for key, value in result.items() if key != "epochs"}
