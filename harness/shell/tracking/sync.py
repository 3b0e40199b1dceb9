"""Add to MLflow what is missing there, from the run folders, and close what a killed process left open.

Running it twice changes nothing: it skips a folder whose link is closed and whose digest matches, and replays
all others with the timestamps of the folder's own events. It leaves runs alone that a process works on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.core.runs.run_folder import RunFolder
from harness.shell.tracking import run_links
from harness.shell.tracking.run_links import is_live
from harness.shell.tracking.store import Store
from harness.shell.tracking.tracker import Tracker

SyncOutcome = Literal["added", "completed", "present", "live", "unreadable"]


@dataclass
class SyncCounts:
    """The number of run folders by outcome, and of runs and studies closed."""

    added: int = 0
    completed: int = 0
    present: int = 0
    live: int = 0
    unreadable: int = 0
    closed: int = 0

    def count(self, outcome: SyncOutcome) -> None:
        """Count one run folder."""
        setattr(self, outcome, getattr(self, outcome) + 1)


def sync(results_dir: Path, store: Store) -> SyncCounts:
    """Bring MLflow up to date with every folder under `results_dir/runs`, then close orphans."""
    tracker = Tracker(store)
    counts = SyncCounts()
    for folder in _run_folders(results_dir):
        counts.count(sync_run(tracker, folder))
    counts.closed = close_orphans(tracker)
    return counts


def _run_folders(results_dir: Path) -> list[Path]:
    """List the folders of all runs by name, those without a readable `job.json` included."""
    paths = sorted((results_dir / "runs").glob("*"))
    return [path for path in paths if path.is_dir() and not path.name.startswith(".")]


def sync_run(tracker: Tracker, folder: Path, *, own: bool = False) -> SyncOutcome:
    """Bring MLflow up to date with one folder. `own`: the caller holds the folder's lock."""
    if not own and is_live(folder):
        return "live"
    run = RunFolder(folder)
    try:
        job, result = run.job() or {}, run.result() or {}
    except ValueError:  # damaged by a crash
        job, result = {}, {}
    link = run_links.read_link(folder)
    if link is not None and link.store != tracker.store.id:
        link = None
    if link is not None and link.digest == run_links.digest(folder):
        if "run_id" not in job or link.studies == run.studies():
            return "present"
        if not _is_active(tracker, link.run_id):  # the user deleted it
            return "present"
        tracker.update_studies(folder)
        return "completed"
    if "run_id" not in job:
        return "unreadable"
    is_current = link is not None and not link.closed and link.attempt in (0, run_links.attempt(folder))
    if link is None or not is_current or not _is_active(tracker, link.run_id):
        tracker.whole(folder, job, result)
        return "added"
    tracker.finish(folder, result, job)  # a kill may have come before the params were logged
    return "completed"


def close_orphans(tracker: Tracker) -> int:
    """Close what is RUNNING without a process that works on it; return the number of runs and studies closed.

    A run with a result is completed from it; one without becomes KILLED.
    """
    store, closed = tracker.store, 0
    for run in store.search("attributes.status = 'RUNNING' and tags.kind = 'trial'"):
        folder = store.results_dir / "runs" / run.data.tags["run_id"]
        link = run_links.read_link(folder)
        current = link is not None and link.run_id == run.info.run_id
        if current and is_live(folder):
            continue
        if not current or sync_run(tracker, folder) == "unreadable":
            store.client.set_tag(run.info.run_id, "status", "killed")
            store.client.set_terminated(run.info.run_id, "KILLED")
        closed += 1
    for run in store.search("attributes.status = 'RUNNING' and tags.kind = 'study'"):
        if not tracker.studies.is_live(run.data.tags["study"]):
            store.client.set_tag(run.info.run_id, "status", "killed")
            store.client.set_terminated(run.info.run_id, "KILLED")
            closed += 1
    return closed


def _is_active(tracker: Tracker, run_id: str) -> bool:
    """Whether the store has the run, and the user has not deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(tracker.store.client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
