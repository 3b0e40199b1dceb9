"""Training runs in MLflow, as children of their study's run.

The run's folder is the original and MLflow a copy, so every call can be repeated: metrics carry the
timestamps of the folder's own events (MLflow drops a point that it already has), and a run that is done again
replaces its MLflow run. Calls wait for MLflow and raise its errors; `background` makes the same calls without
waiting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.config.flatten import flatten
from harness.core.runs.run_folder import CHECKPOINT, UNUSABLE, RunFolder
from harness.core.storage import locks
from harness.shell.tracking import run_links
from harness.shell.tracking.conversion import (
    AXES,
    ENTITIES_PER_CALL,
    METRICS_PER_CALL,
    STATUS,
    axis_name,
    group_name,
    metrics_of,
    now_ms,
    params_of,
    parts,
    result_tags,
    run_name,
    tags_of,
)
from harness.shell.tracking.run_links import RunLink
from harness.shell.tracking.store import Store
from harness.shell.tracking.studies import StudyTracker

if TYPE_CHECKING:
    from mlflow.entities import Metric

# Logged for an attempt without a result: its process was killed together with its parent.
NO_RESULT: Mapping[str, Any] = {
    "status": "killed",
    "error": {"type": "Killed", "message": "the process ended without leaving a result"},
}
# Files of a run's folder that are not results.
PRIVATE = {run_links.LINK, run_links.LOCK, "studies.jsonl", CHECKPOINT, UNUSABLE}
IMMUTABLE = (".json", ".npz")  # replaced by renaming, never altered: may be hard-linked


class Tracker:
    """Writes runs into a store, and studies through `studies`. Not thread-safe."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.studies = StudyTracker(store)
        self._noted: set[str] = set()  # studies whose parent mentions runs that are children of another study

    def begin(self, folder: Path, job: Mapping[str, Any]) -> str:
        """Create the MLflow run of a new attempt and return its id. Earlier MLflow runs of it are deleted."""
        with locks.exclusive_lock(folder / ".mlflow.lock"):  # two commands may log the same run at once
            link = self._create(folder, job)
            for part in parts(_params(job), ENTITIES_PER_CALL):
                self.store.client.log_batch(link.run_id, params=params_of(part))
        return link.run_id

    def whole(self, folder: Path, job: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Do `begin` and `finish` for a run that has already ended, in fewer calls."""
        with locks.exclusive_lock(folder / ".mlflow.lock"):
            self._create(folder, job, result_tags(result or NO_RESULT))
        self.finish(folder, result, job, tagged=True)

    def _create(self, folder: Path, job: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> RunLink:
        run_links.remove_link(folder)
        run_id = str(job["run_id"])
        config = job.get("config") or {}
        studies = RunFolder(folder).studies() or [str(job.get("study") or "default")]
        study_tags = self._study_tags(studies)
        self._delete_earlier_attempts(run_id)
        attempt = run_links.attempt(folder)
        axes = {axis: axis_name(config[axis]) for axis in AXES if config.get(axis) is not None}
        tags = {
            **study_tags,
            "kind": "trial",
            "run_id": run_id,
            "results": self.store.results_id,
            "status": "running",
            "group": group_name(axes),
            **axes,
            **{f"search.{key}": str(value) for key, value in (config.get("search") or {}).items()},
            **(tags or {}),
        }
        client = self.store.client
        run = client.create_run(
            self.store.experiment_id,
            start_time=attempt or now_ms(),
            tags={tag.key: tag.value for tag in tags_of(tags)},
            run_name=run_name(axes),
        )
        store = self.store
        link = RunLink(store.uri, store.id, store.experiment_id, run.info.run_id, attempt, studies=studies)
        run_links.write_link(folder, link)
        return link

    def update_studies(self, folder: Path) -> None:
        """Log which studies a run belongs to now."""
        link, studies = self._link(folder), RunFolder(folder).studies()
        self.store.client.log_batch(link.run_id, tags=tags_of(self._study_tags(studies)))
        run_links.write_link(folder, dataclasses.replace(link, studies=studies))

    def _study_tags(self, studies: Sequence[str]) -> dict[str, str]:
        """Build the tags that make a run a child of its first study, because MLflow allows one parent. The
        tag `studies` has all of them; a note on each other study's parent run says how to find the run."""
        home, *others = studies
        for study in others:
            if study not in self._noted:
                query = f"tags.studies LIKE '%{json.dumps(study)}%'"
                note = f"Some runs of this study are listed under other studies. All of its runs: `{query}`"
                self.store.client.set_tag(self.studies.parent(study), "mlflow.note.content", note)
                self._noted.add(study)
        parent = self.studies.parent(home)
        return {"mlflow.parentRunId": parent, "study": home, "studies": json.dumps(list(studies))}

    def _delete_earlier_attempts(self, run_id: str) -> None:
        """Soft-delete the MLflow runs of earlier attempts; those that are still RUNNING are ended first."""
        for run in self.store.search(f"tags.kind = 'trial' and tags.run_id = '{run_id}'"):
            if run.info.status == "RUNNING":
                self.store.client.set_terminated(run.info.run_id, "KILLED")
            self.store.client.delete_run(run.info.run_id)

    def epochs(self, folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
        """Log epoch records (lines of `events.jsonl`); logging one twice changes nothing."""
        link = self._link(folder)
        for part in parts(_epoch_metrics(records), METRICS_PER_CALL):
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
        """Log final metrics, status and files, and end the MLflow run. `result` is empty if the run left
        none. With a `job`, also log its params; logging one twice changes nothing. `tagged`: the run already
        has the tags of the result.

        Also logs epochs that are in the folder only: all of a short run, or those that a killed process wrote
        without logging them. Skips final metrics that epochs have too, because MLflow shows the last epoch's.
        """
        link = self._link(folder)
        result = result or NO_RESULT
        fingerprint = run_links.digest(folder)
        epochs = [event for event in RunFolder(folder).events() if event.get("event") == "epoch"]
        late = _epoch_metrics([record for record in epochs if int(record["epoch"]) > link.epochs])
        per_epoch = {key for record in epochs for key in record.get("metrics") or {}}
        final = {key: value for key, value in (result.get("metrics") or {}).items() if key not in per_epoch}
        ended = _ended_ms(folder, epochs)
        client = self.store.client
        status = str(result["status"])
        # Step 0: at a larger step the UI draws lines of one dot instead of bars.
        *full, rest = [*parts(late + metrics_of(final, ended, 0), METRICS_PER_CALL)] or [[]]
        for part in full:
            client.log_batch(link.run_id, metrics=part)
        *full_params, rest_params = [*parts(_params(job or {}), ENTITIES_PER_CALL)] or [[]]
        for part in full_params:
            client.log_batch(link.run_id, params=params_of(part))
        tags = [] if tagged else tags_of(result_tags(result))
        client.log_batch(link.run_id, metrics=rest, tags=tags, params=params_of(rest_params))
        self._artifacts(link.run_id, folder)
        client.set_terminated(link.run_id, STATUS[status], end_time=ended)
        run_links.write_link(folder, dataclasses.replace(link, epochs=_last(epochs), digest=fingerprint))

    def _link(self, folder: Path) -> RunLink:
        link = run_links.read_link(folder)
        if link is None or link.store != self.store.id:
            raise LookupError(f"{folder} has no run in {self.store.uri}; call begin() first")
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


def _params(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(flatten(job.get("config") or {}).items())


def _epoch_metrics(records: Sequence[Mapping[str, Any]]) -> list[Metric]:
    return [
        metric
        for record in records
        for metric in metrics_of(record.get("metrics") or {}, int(record["time_ms"]), int(record["epoch"]))
    ]


def _last(records: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the last epoch."""
    return max((int(record["epoch"]) for record in records), default=0)


def _ended_ms(folder: Path, epochs: Sequence[Mapping[str, Any]]) -> int:
    """Return when the run ended. Must be reproducible, so that MLflow drops repeated final metrics."""
    if epochs:  # an earlier attempt may have trained them, before this one began
        return max(int(epochs[-1]["time_ms"]), run_links.attempt(folder))
    for name in ("result.json", "job.json"):
        with contextlib.suppress(FileNotFoundError):
            return int((folder / name).stat().st_mtime * 1000)
    return now_ms()


def _is_result(path: Path) -> bool:
    hidden = path.name.startswith(".") or path.suffix == ".tmp"
    return path.is_file() and path.name not in PRIVATE and not hidden


def _link_or_copy(source: Path, target: Path) -> None:
    """Add a file to the artifacts: a hard link if it can't change and lies on the same disk, else a copy."""
    target.unlink(missing_ok=True)
    if source.suffix in IMMUTABLE:
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, or one without hard links
            pass
    shutil.copyfile(source, target)
