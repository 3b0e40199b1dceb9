"""Studies and runs in MLflow: a study is a parent run, every run of ours a child of it.

The run's folder is the truth and MLflow a copy, so every call here can be repeated: metrics carry the
timestamps of the folder's own events (MLflow drops a point that it has already), and a run that is done again
replaces what MLflow had of it. Calls wait for MLflow and raise what it raises; the front that doesn't is in
`thread`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness.core.config.flatten import flatten
from harness.core.runs.run_folder import CHECKPOINT, UNUSABLE, RunFolder
from harness.core.storage import locks
from harness.shell.tracking import run_links
from harness.shell.tracking.conversion import (
    AXES,
    ENTITIES_PER_CALL,
    METRICS_PER_CALL,
    axis_name,
    group_name,
    metrics_of,
    params_of,
    parts,
    result_tags,
    run_name,
    tags_of,
)
from harness.shell.tracking.run_links import RunLink
from harness.shell.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

STATUS = {
    "finished": "FINISHED",
    # as the loggers of Optuna and Ray Tune have it: nothing went wrong; the tag `status` tells them apart
    "pruned": "FINISHED",
    "failed": "FAILED",
    "timeout": "FAILED",
    "diverged": "FAILED",
    "killed": "KILLED",
}
# What is logged for an attempt that left no result: its process was killed together with its parent.
NO_RESULT: Mapping[str, Any] = {
    "status": "killed",
    "error": {"type": "Killed", "message": "the process ended without leaving a result"},
}
# Files of a run's folder that are no results.
PRIVATE = {run_links.LINK, run_links.LOCK, "studies.jsonl", CHECKPOINT, UNUSABLE}
IMMUTABLE = (".json", ".npz")  # written under another name and renamed, never altered: may be linked


class Tracker:
    """Writes studies and runs into a store. One thread at a time may use it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._studies: dict[str, str] = {}  # those that are open
        self._parents: dict[str, str] = {}  # those that are not
        self._locks: dict[str, IO[str]] = {}
        self._noted: set[str] = set()  # studies whose parent says that runs of theirs are elsewhere

    # -- studies ---------------------------------------------------------------------------------------------

    def study(self, name: str, tags: Mapping[str, str] | None = None) -> str:
        """The MLflow run of the study: found and reopened, or created. Open until `finish_study`."""
        if name in self._studies and not tags:
            return self._studies[name]
        client = self.store.client
        path = self.study_lock(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with locks.held(path.with_suffix(".making")):  # two commands may name the same new study at once
            run_id = self._studies.get(name) or self._find_study(name)
            _open_mark(path).touch()  # before MLflow says so: a kill in between leaves a mark too many
            if run_id is None:
                own = {"kind": "study", "study": name, "results": self.store.results_id}
                run = client.create_run(self.store.experiment_id, tags={**own, **(tags or {})}, run_name=name)
                run_id = run.info.run_id
            else:
                client.update_run(run_id, status="RUNNING")
                if tags:
                    client.log_batch(run_id, tags=tags_of(tags))
            if name not in self._locks:
                self._locks[name] = path.open("a")
                fcntl.flock(self._locks[name], fcntl.LOCK_SH)
        self._studies[name] = run_id
        return run_id

    def finish_study(
        self,
        name: str,
        status: str = "finished",
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End the study with what sums it up, unless another process still works on it."""
        run_id = self.study(name)
        now = _now_ms()
        self.store.client.log_batch(
            run_id,
            metrics=metrics_of(metrics or {}, now, 0),
            tags=tags_of({"status": status, "kind": "study", **(tags or {})}),
        )
        self._end(name, run_id, STATUS[status], now)

    def close(self) -> None:
        """End the studies that nobody finished, as an exception leaves them."""
        for name in list(self._studies):
            self._end(name, self._studies[name], "KILLED")

    def study_lock(self, name: str) -> Path:
        """The file that processes lock (shared) while they work on the study."""
        return study_lock(self.store.results_dir, name)

    def study_is_live(self, name: str) -> bool:
        """Whether this or another process works on the study."""
        return name in self._locks or study_is_live(self.store.results_dir, name)

    def _end(self, name: str, run_id: str, status: str, end_ms: int | None = None) -> None:
        """End the study in MLflow unless another process still works on it, and take its mark away unless one
        has opened it again meanwhile."""
        if not self._release(name):
            return
        self.store.client.set_terminated(run_id, status, end_time=end_ms)
        path = self.study_lock(name)
        with locks.held(path.with_suffix(".making")):
            if not locks.is_held(path):
                _open_mark(path).unlink(missing_ok=True)

    def _parent(self, name: str) -> str:
        """The study's run for a child to point at; a study that nobody works on is not reopened for it."""
        if name in self._studies:
            return self._studies[name]
        if name not in self._parents:
            found = self._find_study(name)
            if found is None:
                found = self.study(name)
                self.finish_study(name)
            self._parents[name] = found
        return self._parents[name]

    def _find_study(self, name: str) -> str | None:
        # Matched here rather than in the query, whose strings have no way to quote a quote.
        for run in self.search("tags.kind = 'study'"):
            if run.data.tags.get("study") == name:
                return str(run.info.run_id)
        return None

    def _release(self, name: str) -> bool:
        """Give up our share of the study; True where nobody else holds one."""
        self._studies.pop(name, None)
        handle = self._locks.pop(name, None)
        if handle is None:
            return True
        # one at a time: of two that try at once, each would find the other still there
        with locks.held(self.study_lock(name).with_suffix(".making")), handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    # -- runs ------------------------------------------------------------------------------------------------

    def begin(self, folder: Path, job: Mapping[str, Any]) -> str:
        """Create the MLflow run of a new attempt; its id. What MLflow had of the same run is deleted."""
        with locks.held(folder / ".mlflow.lock"):  # two commands may bring in the same run at once
            link = self._create(folder, job)
            for part in parts(_params(job), ENTITIES_PER_CALL):
                self.store.client.log_batch(link.run_id, params=params_of(part))
        return link.run_id

    def whole(self, folder: Path, job: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """`begin` and `finish` of a run that ended before MLflow was told of it, in fewer calls."""
        with locks.held(folder / ".mlflow.lock"):
            self._create(folder, job, result_tags(result or NO_RESULT))
        self.finish(folder, result, job, tagged=True)

    def _create(self, folder: Path, job: Mapping[str, Any], more: Mapping[str, str] | None = None) -> RunLink:
        run_links.forget(folder)
        run_id = str(job["run_id"])
        config = job.get("config") or {}
        studies = RunFolder(folder).studies() or [str(job.get("study") or "default")]
        placed = self._study_tags(studies)
        self.supersede(run_id)
        attempt = run_links.attempt(folder)
        axes = {axis: axis_name(config[axis]) for axis in AXES if config.get(axis) is not None}
        tags = {
            **placed,
            "kind": "trial",
            "run_id": run_id,
            "results": self.store.results_id,
            "status": "running",
            "group": group_name(axes),
            **axes,
            **{f"search.{key}": str(value) for key, value in (config.get("search") or {}).items()},
            **(more or {}),
        }
        client = self.store.client
        run = client.create_run(
            self.store.experiment_id,
            start_time=attempt or _now_ms(),
            tags={tag.key: tag.value for tag in tags_of(tags)},
            run_name=run_name(axes),
        )
        store = self.store
        link = RunLink(store.uri, store.id, store.experiment_id, run.info.run_id, attempt, studies=studies)
        run_links.write_link(folder, link)
        return link

    def place(self, folder: Path) -> None:
        """Say anew which studies a run belongs to."""
        link, studies = self._link(folder), RunFolder(folder).studies()
        self.store.client.log_batch(link.run_id, tags=tags_of(self._study_tags(studies)))
        run_links.write_link(folder, dataclasses.replace(link, studies=studies))

    def _study_tags(self, studies: Sequence[str]) -> dict[str, str]:
        """A run is a child of the first of its studies, since MLflow gives it one parent; the tag `studies`
        has all of them, and the parents of the others say how to find it."""
        home, *others = studies
        for study in others:
            if study not in self._noted:
                said = f"tags.studies LIKE '%{json.dumps(study)}%'"
                note = f"Other studies have runs of this one too, and list them. All of its runs: `{said}`"
                self.store.client.set_tag(self._parent(study), "mlflow.note.content", note)
                self._noted.add(study)
        parent = self._parent(home)
        return {"mlflow.parentRunId": parent, "study": home, "studies": json.dumps(list(studies))}

    def supersede(self, run_id: str) -> int:
        """Soft-delete every MLflow run that an earlier attempt of ours left, and end it if it still runs."""
        found = self.search(f"tags.kind = 'trial' and tags.run_id = '{run_id}'")
        for run in found:
            if run.info.status == "RUNNING":
                self.store.client.set_terminated(run.info.run_id, "KILLED")
            self.store.client.delete_run(run.info.run_id)
        return len(found)

    def epochs(self, folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
        """Log epoch records (lines of `events.jsonl`); those that MLflow has already change nothing."""
        link = self._link(folder)
        for part in parts(_of_epochs(records), METRICS_PER_CALL):
            self.store.client.log_batch(link.run_id, metrics=part)
        run_links.write_link(folder, dataclasses.replace(link, epochs=max(link.epochs, _last(records))))

    def finish(
        self,
        folder: Path,
        result: Mapping[str, Any],
        job: Mapping[str, Any] | None = None,
        *,
        tagged: bool = False,
    ) -> None:
        """Log final metrics, status and files, and end the MLflow run. An empty result: it left none.
        With a `job`, its params are logged too; those that MLflow has already change nothing. `tagged`: the
        run has the tags of the result.

        Epochs that were not logged so far are: of a short run all, or those that whoever was killed had
        written down without telling anybody. Final metrics that epochs have too are left out: their last
        epoch is what MLflow shows.
        """
        link = self._link(folder)
        result = result or NO_RESULT
        fingerprint = run_links.digest(folder)
        epochs = [event for event in run_links.read_events(folder) if event.get("event") == "epoch"]
        late = _of_epochs([record for record in epochs if int(record["epoch"]) > link.epochs])
        seen = {key for record in epochs for key in record.get("metrics") or {}}
        final = {key: value for key, value in (result.get("metrics") or {}).items() if key not in seen}
        ended = _ended_ms(folder, epochs)
        client = self.store.client
        status = str(result["status"])
        # Step 0: at a larger step the UI draws lines of one dot instead of bars.
        *full, rest = [*parts(late + metrics_of(final, ended, 0), METRICS_PER_CALL)] or [[]]
        for part in full:
            client.log_batch(link.run_id, metrics=part)
        *others, last = [*parts(_params(job or {}), ENTITIES_PER_CALL)] or [[]]
        for names in others:
            client.log_batch(link.run_id, params=params_of(names))
        tags = [] if tagged else tags_of(result_tags(result))
        client.log_batch(link.run_id, metrics=rest, tags=tags, params=params_of(last))
        self._artifacts(link.run_id, folder)
        client.set_terminated(link.run_id, STATUS[status], end_time=ended)
        run_links.write_link(folder, dataclasses.replace(link, epochs=_last(epochs), digest=fingerprint))

    def search(self, query: str, deleted: bool = False) -> list[Run]:
        """Our own runs (of this results folder) that match the query: active ones, or deleted ones."""
        from mlflow.entities import ViewType

        found: list[Run] = []
        token: str | None = None
        query = f"tags.results = '{self.store.results_id}' and {query}"
        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        while True:
            page = self.store.client.search_runs([self.store.experiment_id], query, view, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _link(self, folder: Path) -> RunLink:
        link = run_links.read_link(folder)
        if link is None or link.store != self.store.id:
            raise LookupError(f"{folder} has no run in {self.store.uri}; begin() comes first")
        return link

    def _artifacts(self, run_id: str, folder: Path) -> None:
        files = [path for path in sorted(folder.iterdir()) if _is_result(path)]
        if self.store.artifacts is None:
            for path in files:
                self.store.client.log_artifact(run_id, str(path))
            return
        target = self.store.artifacts / run_id / "artifacts"
        target.mkdir(parents=True, exist_ok=True)
        for path in files:
            _link_or_copy(path, target / path.name)


def study_lock(results_dir: Path, name: str) -> Path:
    """The file that processes lock (shared) while they work on a study."""
    return results_dir / ".studies" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"


def study_is_live(results_dir: Path, name: str) -> bool:
    """Whether a process works on the study."""
    path = study_lock(results_dir, name)
    if not path.exists():
        return False
    with locks.held(path.with_suffix(".making")):  # to look is to lock, which must not hinder `_release`
        return locks.is_held(path)


def study_is_left_open(results_dir: Path, name: str) -> bool:
    """Whether a command that is gone was killed before it ended the study in MLflow. Asks no store."""
    return _open_mark(study_lock(results_dir, name)).exists() and not study_is_live(results_dir, name)


def _open_mark(lock: Path) -> Path:
    """The file beside a study's lock that is there while MLflow may show the study as RUNNING."""
    return lock.with_suffix(".open")


def is_live(folder: Path) -> bool:
    """Whether a living process works on the run: it holds a lock on the folder's `lock` file."""
    return locks.is_held(folder / run_links.LOCK)


def _params(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(flatten(job.get("config") or {}).items())


def _of_epochs(records: Sequence[Mapping[str, Any]]) -> list[Metric]:
    return [
        metric
        for record in records
        for metric in metrics_of(record.get("metrics") or {}, int(record["time_ms"]), int(record["epoch"]))
    ]


def _last(records: Sequence[Mapping[str, Any]]) -> int:
    """The last epoch of all."""
    return max((int(record["epoch"]) for record in records), default=0)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _ended_ms(folder: Path, epochs: Sequence[Mapping[str, Any]]) -> int:
    """When the run ended. The same each time it is asked, so that repeated final metrics are dropped."""
    if epochs:  # which an earlier attempt may have trained, before this one began
        return max(int(epochs[-1]["time_ms"]), run_links.attempt(folder))
    for name in ("result.json", "job.json"):
        with contextlib.suppress(FileNotFoundError):
            return int((folder / name).stat().st_mtime * 1000)
    return _now_ms()


def _is_result(path: Path) -> bool:
    hidden = path.name.startswith(".") or path.suffix == ".tmp"
    return path.is_file() and path.name not in PRIVATE and not hidden


def _link_or_copy(source: Path, target: Path) -> None:
    """Put a file beside the artifacts; no second copy of what can't change and lies on the same disk."""
    target.unlink(missing_ok=True)
    if source.suffix in IMMUTABLE:
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, or one without hard links
            pass
    shutil.copyfile(source, target)
