"""Studies in MLflow: a study is a parent run, every training run a child of it.

Processes that work on a study hold a shared lock on `<results_dir>/.studies/<hash>.lock`; the last one to
release it ends the MLflow run. Next to it, `.making` serialises opening and ending a study, and `.open`
exists while MLflow may show the study as RUNNING.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from harness.core.storage import locks
from harness.shell.tracking.conversion import STATUS, metrics_of, now_ms, tags_of
from harness.shell.tracking.store import Store


class StudyTracker:
    """Opens, finds and ends studies in a store. Not thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: dict[str, str] = {}  # MLflow run ids by study
        self._closed: dict[str, str] = {}  # the same for studies that this process has not opened
        self._locks: dict[str, IO[str]] = {}

    def open(self, name: str) -> str:
        """Reopen the study's MLflow run, or create it, and return its id. It stays open until `finish`."""
        if name in self._open:
            return self._open[name]
        client = self._store.client
        path = self.lock(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive_lock(_guard(path)):  # two commands may name the same new study at once
            run_id = self._find(name)
            _open_mark(path).touch()  # before the call to MLflow: a kill in between leaves a mark too many
            if run_id is None:
                tags = {"kind": "study", "study": name, "results": self._store.results_id}
                run = client.create_run(self._store.experiment_id, tags=tags, run_name=name)
                run_id = str(run.info.run_id)
            else:
                client.update_run(run_id, status="RUNNING")
            if name not in self._locks:
                self._locks[name] = path.open("a")
                fcntl.flock(self._locks[name], fcntl.LOCK_SH)
        self._open[name] = run_id
        return run_id

    def finish(
        self,
        name: str,
        status: str = "finished",
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log the study's summary, and end it unless another process still works on it."""
        run_id = self.open(name)
        now = now_ms()
        self._store.client.log_batch(
            run_id,
            metrics=metrics_of(metrics or {}, now, 0),
            tags=tags_of({"status": status, "kind": "study", **(tags or {})}),
        )
        self._end(name, run_id, STATUS[status], now)

    def close(self) -> None:
        """End the studies that were not finished, as after an exception."""
        for name in list(self._open):
            self._end(name, self._open[name], "KILLED")

    def parent(self, name: str) -> str:
        """Return the MLflow run id of the study for its children, without reopening an ended study."""
        if name in self._open:
            return self._open[name]
        if name not in self._closed:
            run_id = self._find(name)
            if run_id is None:
                run_id = self.open(name)
                self.finish(name)
            self._closed[name] = run_id
        return self._closed[name]

    def lock(self, name: str) -> Path:
        """The lock file of a study, see `study_lock`."""
        return study_lock(self._store.results_dir, name)

    def is_live(self, name: str) -> bool:
        """Whether this or another process works on the study."""
        return name in self._locks or study_is_live(self._store.results_dir, name)

    def _find(self, name: str) -> str | None:
        # Compared here rather than in the query, whose strings can't escape a quote.
        for run in self._store.search("tags.kind = 'study'"):
            if run.data.tags.get("study") == name:
                return str(run.info.run_id)
        return None

    def _end(self, name: str, run_id: str, status: str, end_ms: int | None = None) -> None:
        """End the study in MLflow unless another process works on it. Remove its mark unless one has reopened
        it meanwhile."""
        if not self._release(name):
            return
        self._store.client.set_terminated(run_id, status, end_time=end_ms)
        path = self.lock(name)
        with locks.exclusive_lock(_guard(path)):
            if not locks.is_locked(path):
                _open_mark(path).unlink(missing_ok=True)

    def _release(self, name: str) -> bool:
        """Release the shared lock; True if no other process holds one."""
        self._open.pop(name, None)
        handle = self._locks.pop(name, None)
        if handle is None:
            return True
        # one at a time: two that try at once would each see the other's lock
        with locks.exclusive_lock(_guard(self.lock(name))), handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True


def study_lock(results_dir: Path, name: str) -> Path:
    """The file that processes hold a shared lock on while they work on a study."""
    return results_dir / ".studies" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"


def study_is_live(results_dir: Path, name: str) -> bool:
    """Whether a process works on the study."""
    path = study_lock(results_dir, name)
    if not path.exists():
        return False
    with locks.exclusive_lock(
        _guard(path)
    ):  # the check takes the lock for an instant, which must not disturb `_release`
        return locks.is_locked(path)


def study_is_left_open(results_dir: Path, name: str) -> bool:
    """Whether a command was killed before it ended the study in MLflow. Does not access the store."""
    return _open_mark(study_lock(results_dir, name)).exists() and not study_is_live(results_dir, name)


def _guard(lock: Path) -> Path:
    return lock.with_suffix(".making")


def _open_mark(lock: Path) -> Path:
    return lock.with_suffix(".open")
