"""Put into MLflow what is missing there, from the run folders, and close what a killed process left open.

Running it twice changes nothing: a folder whose link is closed and whose digest fits is passed over, all else
is replayed with the timestamps of the folder's own events. Runs that a living process works on are left
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.core.runs.run_folder import RunFolder
from harness.shell.tracking import run_links
from harness.shell.tracking.store import Store
from harness.shell.tracking.tracker import Tracker, is_live

Outcome = Literal["added", "completed", "present", "live", "unreadable"]


@dataclass
class SyncCounts:
    """How many run folders there were of each kind, and how many runs and studies were closed."""

    added: int = 0
    completed: int = 0
    present: int = 0
    live: int = 0
    unreadable: int = 0
    closed: int = 0

    def count(self, outcome: Outcome) -> None:
        """Add one."""
        setattr(self, outcome, getattr(self, outcome) + 1)


def sync(results_dir: Path, store: Store) -> SyncCounts:
    """Bring MLflow up to date with every folder under `results_dir/runs`, then close orphans."""
    tracker = Tracker(store)
    counts = SyncCounts()
    for folder in run_folders(results_dir):
        counts.count(sync_run(tracker, folder))
    counts.closed = close_orphans(tracker)
    return counts


def run_folders(results_dir: Path) -> Iterator[Path]:
    """The folders of all runs, by name."""
    runs = results_dir / "runs"
    if runs.is_dir():
        yield from (
            path for path in sorted(runs.iterdir()) if path.is_dir() and not path.name.startswith(".")
        )


def sync_run(tracker: Tracker, folder: Path, *, own: bool = False) -> Outcome:
    """Bring MLflow up to date with one folder. `own`: the caller itself holds the folder's lock."""
    if not own and is_live(folder):
        return "live"
    link = run_links.read_link(folder)
    known = link is not None and link.store == tracker.store.id
    whole = link is not None and known and link.digest == run_links.digest(folder)
    job = run_links.read_json(folder / "job.json")
    if link is not None and whole:
        if "run_id" not in job or link.studies == RunFolder(folder).studies():
            return "present"
        if not _is_active(tracker, link.run_id):  # its user has deleted it
            return "present"
        tracker.place(folder)
        return "completed"
    if "run_id" not in job:
        return "unreadable"
    result = run_links.read_json(folder / "result.json")
    current = (
        link is not None and known and not link.closed and link.attempt in (0, run_links.attempt(folder))
    )
    if link is None or not current or not _is_active(tracker, link.run_id):
        tracker.whole(folder, job, result)
        return "added"
    tracker.finish(folder, result, job)  # a kill may have been faster than the params
    return "completed"


def close_orphans(tracker: Tracker) -> int:
    """Close what is RUNNING though no process works on it; the number of runs and studies closed.

    A run with a result gets it; one without is KILLED.
    """
    store, closed = tracker.store, 0
    for run in tracker.search("attributes.status = 'RUNNING' and tags.kind = 'trial'"):
        folder = store.results_dir / "runs" / run.data.tags["run_id"]
        link = run_links.read_link(folder)
        current = link is not None and link.run_id == run.info.run_id
        if current and is_live(folder):
            continue
        if not current or sync_run(tracker, folder) == "unreadable":
            store.client.set_tag(run.info.run_id, "status", "killed")
            store.client.set_terminated(run.info.run_id, "KILLED")
        closed += 1
    for run in tracker.search("attributes.status = 'RUNNING' and tags.kind = 'study'"):
        if not tracker.study_is_live(run.data.tags["study"]):
            store.client.set_tag(run.info.run_id, "status", "killed")
            store.client.set_terminated(run.info.run_id, "KILLED")
            closed += 1
    return closed


def _is_active(tracker: Tracker, run_id: str) -> bool:
    """Whether the store still has the run, and its user has not deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(tracker.store.client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
