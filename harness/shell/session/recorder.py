"""Records what becomes of runs: in their folders, in MLflow and on the terminal.

The engine reports every run to `RunRecorder`. `StoreThreads` holds the session's MLflow stores, each with its
tracking thread, and the studies in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.config.run_config import RunConfig
from harness.core.runs.run_folder import INTENDED, RunFolder
from harness.core.validation import to_plain
from harness.shell.certificates.store import CertificateStore
from harness.shell.engines.lost_runs import holds_attempt
from harness.shell.reports.progress import Reporter
from harness.shell.runs.records import PreparedRun
from harness.shell.tracking import run_links
from harness.shell.tracking.background import TrackingThread
from harness.shell.tracking.studies import study_is_left_open
from harness.shell.tracking.uri import resolve_uri, sqlite_path


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


class StoreThreads:
    """Opens the store of a configuration when it is first needed: runs of a sweep may have several."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._threads: dict[tuple[str, str | None], TrackingThread] = {}

    def thread(self, config: RunConfig) -> TrackingThread:
        """The tracking thread of a run's store, started if need be."""
        key = _key(config)
        if key not in self._threads:
            thread = TrackingThread(Path(key[0]).resolve(), key[1], warn=self._reporter.note)
            thread.close_orphans()
            self._threads[key] = thread
        return self._threads[key]

    def open_studies(self, runs: Iterable[PreparedRun]) -> None:
        """Open the studies of runs that are about to start, and wait until all stores are open."""
        for run in runs:
            self.thread(run.config).study(run.config.study)
        for thread in self._threads.values():
            thread.wait_open()

    def catch_up(self, runs: Sequence[tuple[RunConfig, RunFolder]]) -> None:
        """Log finished runs that a store lacks, in whole or in part."""
        # all are checked before the first one is synced, which creates a database that was removed
        missing = [run for run in runs if not _is_tracked(*run)]
        for config, folder in missing:
            self.thread(config).sync(folder.path)

    def finish_studies(
        self,
        runs: Sequence[PreparedRun],
        trained: Sequence[PreparedRun],
        results: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """End the studies of the runs that were `trained`, and those that a killed command left open.

        `runs` are all of the command, with their `results` by id.
        """
        active = {run.config.study: run for run in trained}
        for run in active.values():
            status = _study_status(results[other.job.run_id] for other in trained)
            self.thread(run.config).finish_study(run.config.study, status)
        others = {run.config.study: run for run in runs if run.config.study not in active}
        for run in others.values():
            if study_is_left_open(run.results_dir, run.config.study):
                self.thread(run.config).finish_study(run.config.study, _study_status(results.values()))

    def conclude(self, config: RunConfig, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Log the summary of a study after its last run; if no store was opened, nothing has changed."""
        if _key(config) in self._threads:
            self._threads[_key(config)].finish_study(config.study, "finished", metrics, tags)

    def close(self) -> None:
        """Log what is left, and report runs that a store lacks."""
        for thread in self._threads.values():
            unsynced = thread.close()
            if unsynced.folders:
                problem = f"{len(unsynced.folders)} runs are not in MLflow ({unsynced.error})"
                self._reporter.note(f"{problem}; `evenbench sync` adds them")


def _key(config: RunConfig) -> tuple[str, str | None]:
    return config.results_dir, config.tracking.uri


def _is_tracked(config: RunConfig, folder: RunFolder) -> bool:
    """Whether the run's store has all of it; a database may have been removed since."""
    link = run_links.read_link(folder.path)
    uri = resolve_uri(Path(config.results_dir).resolve(), config.tracking.uri)
    database = sqlite_path(uri)
    if link is None or link.tracking_uri != uri or (database is not None and not database.exists()):
        return False
    return link.digest == run_links.digest(folder.path) and link.studies == folder.studies()


def _study_status(results: Iterable[Mapping[str, Any]]) -> str:
    return "finished" if all(result["status"] in INTENDED for result in results) else "failed"
