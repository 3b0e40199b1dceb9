"""`evenbench study rm`: remove a study from the results folder and from MLflow.

The removal can be interrupted at any instant and repeated, because of its order. Whatever can only be derived
from the run folders (MLflow runs, data files) is removed before them. Each folder is moved by one rename into
`.removed/<study>/`, so that `evenbench sync` and others never see half a run, and the study can be named
until that folder is empty. A run that belongs to another study too stays and moves to that study.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.core.runs.run_folder import RunFolder, runs
from harness.core.storage import locks
from harness.core.validation import ConfigError, Mistake
from harness.shell.search.config import search_folder
from harness.shell.studies.listing import dependants, size_mb
from harness.shell.studies.members import members, unknown
from harness.shell.tracking import run_links
from harness.shell.tracking.store import Store, open_store
from harness.shell.tracking.studies import study_lock
from harness.shell.tracking.sync import sync_run
from harness.shell.tracking.tracker import Tracker
from harness.shell.tracking.uri import resolve_uri, sqlite_path


@dataclass(frozen=True)
class RemovalPlan:
    """What to remove: the `removed` run folders, `data` files that no other run needs, the `journal` of its
    search. `shared` runs stay. `stores` are the tracking URIs that may have its runs."""

    results_dir: Path
    study: str
    removed: tuple[RunFolder, ...]
    shared: tuple[RunFolder, ...]
    data: tuple[Path, ...]
    journal: Path | None
    stores: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Describe the plan, one line per item."""
        yield f"study {self.study!r}: {_count(len(self.removed), 'run')}, {size_mb(self.removed):,.1f} MB"
        yield f"  from MLflow: {', '.join(self.stores) or 'nothing, no store has it'}"
        if self.journal is not None:
            yield f"  the journal of its search: {self.journal}"
        if self.data:
            yield f"  data that no other run needs: {', '.join(path.name for path in self.data)}"
        if self.shared:
            names = sorted({name for folder in self.shared for name in folder.studies()} - {self.study})
            yield f"  {_count(len(self.shared), 'run')} of {', '.join(names)} too: not removed"
        for run_id, source in dependants(self.results_dir, self.removed):
            yield f"  run {run_id} started from {source}, which is removed: it can't be repeated without it"


def plan_removal(results_dir: Path, study: str) -> RemovalPlan:
    """Plan the removal of a study.

    Raises ConfigError if it does not exist or a process works on it, Unreachable if MLflow is needed to
    decide and does not answer.
    """
    all_members = members(results_dir)
    folders = all_members.get(study, [])
    journal = _journal(results_dir, study)
    stores = _stores(results_dir, folders)
    exists = folders or journal is not None or _trash(results_dir, study).exists()
    # a user may have deleted its folders by hand
    if not exists and not any(_has_study(open_store(results_dir, uri), study) for uri in stores):
        raise unknown(study, all_members)
    live = [folder.run_id for folder in folders if run_links.is_live(folder.path)]
    if live or locks.is_locked(study_lock(results_dir, study)):
        busy = f"run {', '.join(live)}" if live else "it"
        raise ConfigError([Mistake("study", f"{study!r} can't be removed while a process works on {busy}")])
    shared = tuple(folder for folder in folders if len(folder.studies()) > 1)
    removed = tuple(folder for folder in folders if folder not in shared)
    return RemovalPlan(
        results_dir, study, removed, shared, _data(results_dir, study, removed), journal, stores
    )


def remove(plan: RemovalPlan) -> list[RunFolder]:
    """Carry out a plan. Return the folders that stay because a process has started to work on them.

    Raises ConfigError if a process works on the study, Unreachable if MLflow does not answer.
    """
    busy_study = Mistake("study", f"{plan.study!r} can't be removed while a process works on it")
    with locks.exclusive_lock_or_fail(study_lock(plan.results_dir, plan.study), busy_study):
        for folder in plan.shared:
            folder.leave(plan.study)
        trackers = [Tracker(open_store(plan.results_dir, uri)) for uri in plan.stores]
        for tracker in trackers:
            _remove_from_mlflow(tracker, plan)
        if plan.journal is not None:
            _delete(plan.journal)
        for path in plan.data:
            path.unlink(missing_ok=True)
        busy = _delete_folders(plan)
    return busy


def _remove_from_mlflow(tracker: Tracker, plan: RemovalPlan) -> None:
    """Delete the MLflow runs of the study and of its removed runs, with their artifacts."""
    store = tracker.store
    for folder in runs(plan.results_dir):
        link = run_links.read_link(folder.path)
        has_left = link is not None and plan.study in link.studies and plan.study not in folder.studies()
        if link is not None and has_left and link.store == store.id:
            sync_run(tracker, folder.path)  # first: a child must not point at a deleted parent
    removed = {folder.run_id for folder in plan.removed}
    remaining = {folder.run_id for folder in runs(plan.results_dir)} - removed
    client, artifacts = store.client, store.artifacts
    for deleted in (True, False):
        children = [
            run
            for run in store.search("tags.kind = 'trial'", deleted)
            if (run_id := run.data.tags.get("run_id")) in removed
            or (run.data.tags.get("study") == plan.study and run_id not in remaining)
        ]
        parents = [
            run
            for run in store.search("tags.kind = 'study'", deleted)
            if run.data.tags.get("study") == plan.study
        ]
        for run in children + parents:
            if not deleted:
                if run.info.status == "RUNNING":
                    client.set_terminated(run.info.run_id, "KILLED")
                client.delete_run(run.info.run_id)
            if artifacts is not None:
                _delete(artifacts / run.info.run_id)


def _delete_folders(plan: RemovalPlan) -> list[RunFolder]:
    trash = _trash(plan.results_dir, plan.study)
    _delete(trash)
    busy = []
    for folder in plan.removed:
        trash.mkdir(parents=True, exist_ok=True)
        try:
            with folder.locked(wait=False):
                os.rename(folder.path, trash / folder.run_id)
        except BlockingIOError:
            busy.append(folder)
    _delete(trash)
    with contextlib.suppress(OSError):  # not empty: the removal of another study was interrupted
        trash.parent.rmdir()
    return busy


def _data(results_dir: Path, study: str, removed: tuple[RunFolder, ...]) -> tuple[Path, ...]:
    """List the data files that only these runs need. Empty while a process works on another study, because
    the data of runs that have not begun are not known yet."""
    studies = (results_dir / ".studies").glob("*.lock")
    if any(locks.is_locked(path) for path in studies if path != study_lock(results_dir, study)):
        return ()
    removed_ids = {folder.run_id for folder in removed}
    used_by_removed: set[str] = set()
    used_by_others: set[str] = set()
    for folder in runs(results_dir):
        names = used_by_removed if folder.run_id in removed_ids else used_by_others
        names.add(str((folder.job() or {}).get("data_file")))
    files = (results_dir / name for name in sorted(used_by_removed - used_by_others))
    return tuple(path for path in files if path.is_file())


def _stores(results_dir: Path, folders: list[RunFolder]) -> tuple[str, ...]:
    """List the default store and those that the runs were logged to or configured for, if they still
    exist."""
    uris = {resolve_uri(results_dir, None): None}
    for folder in folders:
        config = (folder.job() or {}).get("config") or {}
        uris[resolve_uri(results_dir, (config.get("tracking") or {}).get("uri"))] = None
        if (link := run_links.read_link(folder.path)) is not None:
            uris[link.tracking_uri] = None
    return tuple(uri for uri in uris if (path := sqlite_path(uri)) is None or path.exists())


def _has_study(store: Store, study: str) -> bool:
    return any(run.data.tags.get("study") == study for run in store.search("tags.kind = 'study'"))


def _journal(results_dir: Path, study: str) -> Path | None:
    path = search_folder(results_dir, study)
    return path if path.exists() else None


def _trash(results_dir: Path, study: str) -> Path:
    return results_dir / ".removed" / hashlib.sha256(study.encode()).hexdigest()[:16]


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
