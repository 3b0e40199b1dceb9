"""MLflow in a thread of its own: the engine says what happened and goes on.

An unreachable server must neither stop nor lose a run. What can't be logged after a few tries is left in the
run's folder. The thread tries such runs again as a whole when they end and when it closes, holds back for a
while if the store is down, and leaves the rest to `evenbench sync`. The engine is warned once,
and gets the count from `close`.

What happens is gathered for a second and logged in one call: ten calls of one epoch cost ten times as much,
and a run that is shorter than that is logged when it has ended, as a whole.
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
from harness.shell.tracking.store import EXPERIMENT, Store, open_store, resolve_uri
from harness.shell.tracking.sync import close_orphans, sync_run
from harness.shell.tracking.tracker import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnsyncedRuns:
    """What MLflow has not got: folders of runs, and the last error. Empty when all is well."""

    folders: tuple[Path, ...] = ()
    error: str = ""


class TrackingThread:
    """The calls of `Tracker`, in order, without waiting. Use it as a context manager, or call `close`.

    gather_s: how long a new run and its epochs may wait for more of the same run. tries: attempts a call.
    pause_s: how long to leave a store alone that failed them all. warn: gets one line the first time that
    happens.
    """

    def __init__(
        self,
        results_dir: Path,
        uri: str | None = None,
        *,
        experiment: str = EXPERIMENT,
        gather_s: float = 1.0,
        tries: int = 3,
        pause_s: float = 30.0,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.uri = resolve_uri(results_dir, uri)  # a mistake shows here, before MLflow is imported
        self._results_dir, self._experiment = results_dir, experiment
        self._gather_s, self._tries, self._pause_s, self._warn = gather_s, tries, pause_s, warn
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._opened = threading.Event()
        self._tracker: Tracker | None = None
        self._mistake: ConfigError | None = None
        self._new: dict[Path, Mapping[str, Any]] = {}  # jobs of runs that MLflow is not told of yet
        self._waiting: dict[Path, list[Mapping[str, Any]]] = {}  # epochs that are being gathered
        self._due = 0.0
        self._begun: dict[Path, str] = {}  # the MLflow runs of attempts that go on
        self._missed: dict[Path, None] = {}
        self._error = ""
        self._paused_until = 0.0
        self._closed = False
        self._studies: dict[str, dict[str, str]] = {}  # open ones, in case the store opens late
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def __enter__(self) -> TrackingThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what the engine calls ----------------------------------------------------------------------------

    def wait_open(self, timeout_s: float | None = None) -> Store | None:
        """Wait until the store was opened. Raises ConfigError for a URI that can't be right.

        None where it does not answer (or not in time): runs may start, they will be missed for now.
        """
        self._opened.wait(timeout_s)
        if self._mistake is not None:
            raise self._mistake
        return self._tracker.store if self._tracker else None

    def close_orphans(self) -> None:
        """Close what killed processes left RUNNING; call it before a sweep begins."""
        self._put(lambda: self._guarded((), close_orphans))

    def study(self, name: str, tags: Mapping[str, str] | None = None) -> None:
        """Open a study."""

        def call() -> None:
            self._studies[name] = dict(tags or {})
            self._guarded((), lambda tracker: tracker.study(name, tags))

        self._put(call)

    def finish_study(
        self,
        name: str,
        status: str = "finished",
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End a study. Runs that were missed so far are tried before it."""

        def call() -> None:
            self._retry_missed()
            self._studies.pop(name, None)
            self._guarded((), lambda tracker: tracker.finish_study(name, status, metrics, tags))

        self._put(call)

    def begin(self, folder: Path, job: Mapping[str, Any]) -> None:
        """A new attempt of a run starts."""
        run_links.forget(
            folder
        )  # at once: if this process dies now, the old link must not pass for the new one

        def call() -> None:
            self._missed.pop(folder, None)
            self._waiting.pop(folder, None)  # of an attempt that broke off: they are none of this one's
            self._begun.pop(folder, None)
            self._gather()
            self._new[folder] = job

        self._put(call)

    def epochs(self, folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
        """Epochs of a run came in."""

        def call() -> None:
            self._gather()
            self._waiting.setdefault(folder, []).extend(records)

        self._put(call)

    def finish(self, folder: Path, result: Mapping[str, Any]) -> None:
        """A run ended, and all of its files are written."""

        def call() -> None:
            # they are in the run's files too, and go with its end in one call
            self._waiting.pop(folder, None)
            self._begun.pop(folder, None)
            job = self._new.pop(folder, None)
            if folder in self._missed:
                self._retry(folder)
            elif job is not None:
                self._guarded((folder,), lambda tracker: tracker.whole(folder, job, result))
            else:
                self._guarded((folder,), lambda tracker: tracker.finish(folder, result))

        self._put(call)

    def sync(self, folder: Path) -> None:
        """See to it that MLflow has a run that was finished earlier."""

        def call() -> None:
            self._waiting.pop(folder, None)  # what is missing is taken from the run's files
            self._new.pop(folder, None)
            self._guarded((folder,), lambda tracker: sync_run(tracker, folder))

        self._put(call)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything said so far was logged (or missed); False if that takes longer."""
        done = threading.Event()

        def call() -> None:
            self._log_gathered()
            done.set()

        self._put(call)
        return done.wait(timeout_s)

    def close(self, timeout_s: float | None = 60.0) -> UnsyncedRuns:
        """Log what is left, end open studies, stop the thread, and say what MLflow has not got."""
        if not self._closed:
            self._closed = True
            self._calls.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._error = self._error or f"MLflow took longer than {timeout_s:g} s"
        return UnsyncedRuns(
            tuple(self._missed), self._error if self._missed or self._thread.is_alive() else ""
        )

    # -- in the thread ------------------------------------------------------------------------------------

    def _put(self, call: Callable[[], None]) -> None:
        if self._closed:
            raise RuntimeError("the tracking thread is closed")
        self._calls.put(call)

    def _run(self) -> None:
        self._guarded((), lambda tracker: None)  # opens the store, so that nobody waits for it
        self._opened.set()
        while (call := self._next()) is not None:
            call()
        self._log_gathered()
        self._paused_until = 0.0
        self._retry_missed()
        if self._tracker is not None:
            self._guarded((), Tracker.close)

    def _next(self) -> Callable[[], None] | None:
        """The next call; while something is gathered, not later than it is due."""
        while self._new or self._waiting:
            try:
                return self._calls.get(timeout=max(0.0, self._due - time.monotonic()))
            except queue.Empty:
                self._log_gathered()
        return self._calls.get()

    def _gather(self) -> None:
        if not self._new and not self._waiting:
            self._due = time.monotonic() + self._gather_s

    def _log_gathered(self) -> None:
        for folder in list(self._new):
            self._begin(folder)
        for folder in list(self._waiting):
            self._log_epochs(folder)

    def _begin(self, folder: Path) -> None:
        job = self._new.pop(folder)
        self._guarded((folder,), lambda tracker: self._begun.update({folder: tracker.begin(folder, job)}))

    def _log_epochs(self, folder: Path) -> None:
        records = self._waiting.pop(folder, [])
        if not records or folder in self._missed:
            return
        link = run_links.read_link(folder)
        if link is not None and link.run_id != self._begun.get(folder, link.run_id):
            return  # another command has the run by now
        self._guarded((folder,), lambda tracker: tracker.epochs(folder, records))

    def _retry(self, folder: Path) -> None:
        """Put a missed run into MLflow as a whole."""
        del self._missed[folder]
        self._guarded((folder,), lambda tracker: sync_run(tracker, folder, own=True))

    def _retry_missed(self) -> None:
        for folder in [path for path in self._missed if (path / "result.json").exists()]:
            self._retry(folder)

    def _guarded(self, folders: tuple[Path, ...], call: Callable[[Tracker], object]) -> None:
        """Do the call, a few times if need be; mark the folders as missed if it fails."""
        error: Exception | None = None
        for attempt in range(self._tries):
            if self._mistake is not None or time.monotonic() < self._paused_until:
                break
            try:
                call(self._open())
                return
            except ConfigError as mistake:
                self._mistake = mistake
                error = mistake
            except Exception as failure:  # whatever a store raises, a run must go on
                error = failure
                if attempt + 1 < self._tries:
                    time.sleep(0.2 * 4**attempt)
        self._missed.update(dict.fromkeys(folders))
        if error is None:
            return
        if not self._answers():
            self._paused_until = time.monotonic() + self._pause_s
        if not self._error:
            self._warn(
                f"MLflow at {self.uri} does not take what is logged ({_brief(error)}). Runs go on, their "
                "results are in their folders; `evenbench sync` puts them into MLflow later."
            )
        self._error = _brief(error)

    def _answers(self) -> bool:
        """Whether the store is there at all: what it refused of one run must not hold up the others."""
        if self._tracker is None:
            return False
        try:
            self._tracker.store.client.get_experiment(self._tracker.store.experiment_id)
        except Exception:  # of any kind: it is the answer
            return False
        return True

    def _open(self) -> Tracker:
        if self._tracker is None:
            tracker = Tracker(open_store(self._results_dir, self.uri, self._experiment))
            for name, tags in self._studies.items():
                tracker.study(name, tags)
            self._tracker = tracker
        return self._tracker


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
