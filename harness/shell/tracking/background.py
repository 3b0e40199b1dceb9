"""MLflow in a background thread: the session queues what happened and continues.

An unreachable server must neither stop nor lose a run. A call that still fails after a few attempts is
dropped; its data stay in the run's folder. The thread retries such a run as a whole when it ends and when the
thread closes, pauses while the store is down, and leaves the rest to `evenbench sync`. It warns once; `close`
returns the runs that MLflow has not got.

Events are collected for a second and logged in one call, because ten calls of one epoch cost ten times as
much. A run that is shorter than that is logged as a whole when it has ended.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.core.validation import ConfigError
from harness.shell.tracking import run_links
from harness.shell.tracking.store import Store, open_store
from harness.shell.tracking.sync import close_orphans, sync_run
from harness.shell.tracking.tracker import Tracker
from harness.shell.tracking.uri import resolve_uri

BATCH_S = 1.0  # how long a new run and its epochs may wait for more of them
TRIES = 3  # per call
PAUSE_S = 30.0  # without calls, after the store failed one for good
CLOSE_TIMEOUT_S = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnsyncedRuns:
    """The run folders that MLflow has not got, and the last error. Empty when everything was logged."""

    folders: tuple[Path, ...] = ()
    error: str = ""


class TrackingThread:
    """The calls of `Tracker`, in order, without waiting. Use it as a context manager, or call `close`.

    `warn` gets one line, the first time that the store fails.
    """

    def __init__(
        self, results_dir: Path, uri: str | None = None, *, warn: Callable[[str], None] = log.warning
    ) -> None:
        self.uri = resolve_uri(results_dir, uri)  # raises for a mistake before MLflow is imported
        self._results_dir, self._warn = results_dir, warn
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._opened = threading.Event()
        self._tracker: Tracker | None = None
        self._mistake: ConfigError | None = None
        self._new_jobs: dict[Path, Mapping[str, Any]] = {}  # of runs that MLflow does not know yet
        self._records: dict[Path, list[Mapping[str, Any]]] = {}  # epochs collected for the next call
        self._batch_ends = 0.0
        self._mlflow_runs: dict[Path, str] = {}  # ids of the current attempts
        self._unsynced: dict[Path, None] = {}
        self._error = ""
        self._paused_until = 0.0
        self._closed = False
        self._studies: dict[str, None] = {}  # open ones, in case the store opens late
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def __enter__(self) -> TrackingThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- called by the session ----------------------------------------------------------------------------

    def wait_open(self) -> Store | None:
        """Wait until the store was opened. Raises ConfigError for an invalid URI.

        Returns None if the store does not answer: runs may start, and are synced later.
        """
        self._opened.wait()
        if self._mistake is not None:
            raise self._mistake
        return self._tracker.store if self._tracker else None

    def close_orphans(self) -> None:
        """Close what killed processes left RUNNING; call it before a sweep begins."""
        self._put(lambda: self._try((), close_orphans))

    def study(self, name: str) -> None:
        """Open a study."""

        def call() -> None:
            self._studies[name] = None
            self._try((), lambda tracker: tracker.studies.open(name))

        self._put(call)

    def finish_study(
        self,
        name: str,
        status: str = "finished",
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End a study, after another attempt at its runs that could not be logged."""

        def call() -> None:
            self._retry_unsynced()
            self._studies.pop(name, None)
            self._try((), lambda tracker: tracker.studies.finish(name, status, metrics, tags))

        self._put(call)

    def begin(self, folder: Path, job: Mapping[str, Any]) -> None:
        """Start a new attempt of a run."""
        # at once: if this process dies now, the old link must not pass for the new one
        run_links.remove_link(folder)

        def call() -> None:
            self._unsynced.pop(folder, None)
            self._records.pop(folder, None)  # of an earlier attempt that broke off
            self._mlflow_runs.pop(folder, None)
            self._start_batch()
            self._new_jobs[folder] = job

        self._put(call)

    def epochs(self, folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
        """Log epochs of a run."""

        def call() -> None:
            self._start_batch()
            self._records.setdefault(folder, []).extend(records)

        self._put(call)

    def finish(self, folder: Path, result: Mapping[str, Any]) -> None:
        """End a run, all of whose files are written."""

        def call() -> None:
            self._records.pop(folder, None)  # the run's files have them too; `finish` logs them in one call
            self._mlflow_runs.pop(folder, None)
            job = self._new_jobs.pop(folder, None)
            if folder in self._unsynced:
                self._retry(folder)
            elif job is not None:
                self._try((folder,), lambda tracker: tracker.whole(folder, job, result))
            else:
                self._try((folder,), lambda tracker: tracker.finish(folder, result))

        self._put(call)

    def sync(self, folder: Path) -> None:
        """Make sure that MLflow has a run that was finished earlier."""

        def call() -> None:
            self._records.pop(folder, None)  # the run's files have them
            self._new_jobs.pop(folder, None)
            self._try((folder,), lambda tracker: sync_run(tracker, folder))

        self._put(call)

    def flush(self) -> None:
        """Wait until all calls so far were logged or have failed."""
        done = threading.Event()

        def call() -> None:
            self._log_batch()
            done.set()

        self._put(call)
        done.wait()

    def close(self) -> UnsyncedRuns:
        """Log the rest, end open studies, stop the thread, and return the runs that MLflow has not got."""
        if not self._closed:
            self._closed = True
            self._calls.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self._error = self._error or f"MLflow took longer than {CLOSE_TIMEOUT_S:g} s"
        return UnsyncedRuns(
            tuple(self._unsynced), self._error if self._unsynced or self._thread.is_alive() else ""
        )

    # -- in the thread ------------------------------------------------------------------------------------

    def _put(self, call: Callable[[], None]) -> None:
        if self._closed:
            raise RuntimeError("the tracking thread is closed")
        self._calls.put(call)

    def _run(self) -> None:
        self._try((), lambda tracker: None)  # opens the store, so that the first run does not wait for it
        self._opened.set()
        while (call := self._next()) is not None:
            call()
        self._log_batch()
        self._paused_until = 0.0
        self._retry_unsynced()
        if self._tracker is not None:
            self._try((), lambda tracker: tracker.studies.close())

    def _next(self) -> Callable[[], None] | None:
        """Return the next call. Log the current batch when its time is up."""
        while self._new_jobs or self._records:
            try:
                return self._calls.get(timeout=max(0.0, self._batch_ends - time.monotonic()))
            except queue.Empty:
                self._log_batch()
        return self._calls.get()

    def _start_batch(self) -> None:
        if not self._new_jobs and not self._records:
            self._batch_ends = time.monotonic() + BATCH_S

    def _log_batch(self) -> None:
        for folder in list(self._new_jobs):
            self._begin(folder)
        for folder in list(self._records):
            self._log_epochs(folder)

    def _begin(self, folder: Path) -> None:
        job = self._new_jobs.pop(folder)

        def call(tracker: Tracker) -> None:
            self._mlflow_runs[folder] = tracker.begin(folder, job)

        self._try((folder,), call)

    def _log_epochs(self, folder: Path) -> None:
        records = self._records.pop(folder, [])
        if not records or folder in self._unsynced:
            return
        link = run_links.read_link(folder)
        if link is not None and link.run_id != self._mlflow_runs.get(folder, link.run_id):
            return  # another command has taken over the run
        self._try((folder,), lambda tracker: tracker.epochs(folder, records))

    def _retry(self, folder: Path) -> None:
        """Log a run that could not be logged before, as a whole."""
        del self._unsynced[folder]
        self._try((folder,), lambda tracker: sync_run(tracker, folder, own=True))

    def _retry_unsynced(self) -> None:
        for folder in [path for path in self._unsynced if (path / "result.json").exists()]:
            self._retry(folder)

    def _try(self, folders: tuple[Path, ...], call: Callable[[Tracker], object]) -> None:
        """Make a call, with retries. If it fails, note the folders as unsynced and warn once."""
        error: Exception | None = None
        for attempt in range(TRIES):
            if self._mistake is not None or time.monotonic() < self._paused_until:
                break
            try:
                call(self._open())
                return
            except ConfigError as mistake:
                self._mistake = mistake
                error = mistake
            except Exception as failure:  # whatever a store raises, the run must continue
                error = failure
                if attempt + 1 < TRIES:
                    time.sleep(0.2 * 4**attempt)
        self._unsynced.update(dict.fromkeys(folders))
        if error is None:
            return
        if not self._answers():
            self._paused_until = time.monotonic() + PAUSE_S
        if not self._error:
            self._warn(
                f"MLflow at {self.uri} does not accept what is logged ({_first_line(error)}). Runs continue; "
                "their results are in their folders, and `evenbench sync` adds them to MLflow later."
            )
        self._error = _first_line(error)

    def _answers(self) -> bool:
        """Whether the store answers at all: what it refuses of one run must not delay the others."""
        if self._tracker is None:
            return False
        try:
            self._tracker.store.client.get_experiment(self._tracker.store.experiment_id)
        except Exception:  # of any kind
            return False
        return True

    def _open(self) -> Tracker:
        if self._tracker is None:
            tracker = Tracker(open_store(self._results_dir, self.uri))
            for name in self._studies:
                tracker.studies.open(name)
            self._tracker = tracker
        return self._tracker


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
