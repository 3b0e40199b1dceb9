"""`evenbench study rm`: take a study away, from the results folder and from MLflow.

What it does can be stopped at any instant and asked for again, because of its order. What is only known
from the run folders (which MLflow runs, which data) goes before them. A folder goes by one rename into
`.removed/<study>/`, so that no half of a run is ever seen, by `evenbench sync` for one, and the study is
known by that name until it is empty. A run that another study has too stays, and becomes that one's.
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
from harness.shell.search.space import folder_of
from harness.shell.studies.listing import dependants, size_mb
from harness.shell.studies.members import members, unknown
from harness.shell.tracking import run_links
from harness.shell.tracking.store import open_store, resolve_uri, sqlite_path
from harness.shell.tracking.sync import sync_run
from harness.shell.tracking.tracker import Tracker, is_live, study_lock


@dataclass(frozen=True)
class Plan:
    """What is to go: the `removed` run folders, `data` files that no other run needs, the `journal` of its
    search; `shared` runs stay. `stores` are the tracking URIs where MLflow may have something of it."""

    results_dir: Path
    study: str
    removed: tuple[RunFolder, ...]
    shared: tuple[RunFolder, ...]
    data: tuple[Path, ...]
    journal: Path | None
    stores: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The plan in words."""
        yield f"study {self.study!r}: {_count(len(self.removed), 'run')}, {size_mb(self.removed):,.1f} MB"
        yield f"  from MLflow: {', '.join(self.stores) or 'nothing, it has none of it'}"
        if self.journal is not None:
            yield f"  the journal of its search: {self.journal}"
        if self.data:
            yield f"  data that no other run needs: {', '.join(path.name for path in self.data)}"
        if self.shared:
            names = sorted({name for folder in self.shared for name in folder.studies()} - {self.study})
            yield f"  {_count(len(self.shared), 'run')} of {', '.join(names)} too: kept there"
        for run_id, source in dependants(self.results_dir, self.removed):
            yield f"  run {run_id} started from {source}, which goes: it can't be done again without it"


def plan(results_dir: Path, study: str) -> Plan:
    """What removing the study takes; raises ConfigError where there is none, or where a process works on it.

    Raises Unreachable where MLflow has to be asked and does not answer.
    """
    found = members(results_dir)
    folders = found.get(study, [])
    journal = _journal(results_dir, study)
    stores = _stores(results_dir, folders)
    known = folders or journal is not None or _trash(results_dir, study).exists()
    # its folders may have been deleted by hand
    if not known and not any(_has(Tracker(open_store(results_dir, uri)), study) for uri in stores):
        raise unknown(study, found)
    live = [folder.run_id for folder in folders if is_live(folder.path)]
    if live or locks.is_held(study_lock(results_dir, study)):
        doing = f"run {', '.join(live)}" if live else "it"
        raise ConfigError([Mistake("study", f"{study!r} can't be removed while a process works on {doing}")])
    shared = tuple(folder for folder in folders if len(folder.studies()) > 1)
    removed = tuple(folder for folder in folders if folder not in shared)
    return Plan(results_dir, study, removed, shared, _data(results_dir, study, removed), journal, stores)


def carry_out(plan: Plan) -> list[RunFolder]:
    """Remove what the plan says; the folders that a process has begun to work on meanwhile, which stay.

    Raises ConfigError where one works on the study, Unreachable where MLflow does not answer.
    """
    otherwise = Mistake("study", f"{plan.study!r} can't be removed while a process works on it")
    with locks.held_alone(study_lock(plan.results_dir, plan.study), otherwise):
        for folder in plan.shared:
            folder.leave(plan.study)
        trackers = [Tracker(open_store(plan.results_dir, uri)) for uri in plan.stores]
        for tracker in trackers:
            _forget(tracker, plan)
        if plan.journal is not None:
            _delete(plan.journal)
        for path in plan.data:
            path.unlink(missing_ok=True)
        busy = _delete_folders(plan)
    return busy


def _forget(tracker: Tracker, plan: Plan) -> None:
    """Have MLflow know nothing of the study and its runs any more."""
    for folder in runs(plan.results_dir):
        link = run_links.read_link(folder.path)
        left = link is not None and plan.study in link.studies and plan.study not in folder.studies()
        if link is not None and left and link.store == tracker.store.id:
            sync_run(tracker, folder.path)  # first: a child must not hang on a parent that is gone
    client, artifacts = tracker.store.client, tracker.store.artifacts
    gone = {folder.run_id for folder in plan.removed}
    there = {folder.run_id for folder in runs(plan.results_dir)} - gone
    for deleted in (True, False):
        trials = [
            run
            for run in tracker.search("tags.kind = 'trial'", deleted)
            if (run_id := run.data.tags.get("run_id")) in gone
            or (run.data.tags.get("study") == plan.study and run_id not in there)
        ]
        parents = [
            run
            for run in tracker.search("tags.kind = 'study'", deleted)
            if run.data.tags.get("study") == plan.study
        ]
        for run in trials + parents:
            if not deleted:
                if run.info.status == "RUNNING":
                    client.set_terminated(run.info.run_id, "KILLED")
                client.delete_run(run.info.run_id)
            if artifacts is not None:
                _delete(artifacts / run.info.run_id)


def _delete_folders(plan: Plan) -> list[RunFolder]:
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
    with contextlib.suppress(OSError):  # of another study, whose removal was stopped
        trash.parent.rmdir()
    return busy


def _data(results_dir: Path, study: str, removed: tuple[RunFolder, ...]) -> tuple[Path, ...]:
    """The data files of these runs alone. None while another study is being worked on: its runs that have not
    begun don't say yet which data they need."""
    studies = (results_dir / ".studies").glob("*.lock")
    if any(locks.is_held(path) for path in studies if path != study_lock(results_dir, study)):
        return ()
    gone = {folder.run_id for folder in removed}
    needed: dict[bool, set[str]] = {True: set(), False: set()}
    for folder in runs(results_dir):
        needed[folder.run_id in gone].add(str((folder.job() or {}).get("data_file")))
    files = (results_dir / name for name in sorted(needed[True] - needed[False]))
    return tuple(path for path in files if path.is_file())


def _stores(results_dir: Path, folders: list[RunFolder]) -> tuple[str, ...]:
    """The stores that the runs were logged to, or were to be, and the default one; none that are gone."""
    uris = {resolve_uri(results_dir, None): None}
    for folder in folders:
        config = (folder.job() or {}).get("config") or {}
        uris[resolve_uri(results_dir, (config.get("tracking") or {}).get("uri"))] = None
        if (link := run_links.read_link(folder.path)) is not None:
            uris[link.tracking_uri] = None
    return tuple(uri for uri in uris if (path := sqlite_path(uri)) is None or path.exists())


def _has(tracker: Tracker, study: str) -> bool:
    return any(run.data.tags.get("study") == study for run in tracker.search("tags.kind = 'study'"))


def _journal(results_dir: Path, study: str) -> Path | None:
    path = folder_of(results_dir, study)
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
