"""`evenbench study rm`: what goes, what stays, and what a kill in between leaves."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from harness.core.runs.run_folder import RunFolder
from harness.core.storage import locks
from harness.core.validation import ConfigError
from harness.shell.commands import main
from harness.shell.studies.listing import studies
from harness.shell.studies.removal import plan_removal, remove
from harness.shell.tracking import run_links
from harness.shell.tracking.store import Store, open_store
from harness.shell.tracking.studies import study_lock
from harness.shell.tracking.sync import SyncCounts, sync
from tests.support.paths import ROOT
from tests.support.study_folders import Make, active, files


def test_rm_leaves_nothing_and_sync_brings_nothing_back(make: Make, results: Path, store: Store) -> None:
    """Catches: a folder, an MLflow run, an artifact or a journal that stays, a deleted data file that another
    study needs, an unused one that stays, changes to another study."""
    make("a1", "first", data="wine")
    make("a2", "first", "failed")
    make("a3", "first", None)
    make("b1", "second")
    (results / "searches" / "first").mkdir(parents=True)
    (results / "searches" / "first" / "journal").write_text("{}")
    sync(results, store)
    run_links.remove_link(results / "runs" / "a2")
    sync(results, store)  # creates the run again: MLflow has a deleted run too
    before = files(results)
    assert remove(plan_removal(results, "first")) == []
    assert list(active(store)) == ["b1"] and list(active(store, "study")) == ["second"]
    left = files(results)
    assert left < before
    assert {path for path in left if not path.startswith("artifacts")} == {
        "data/iris.npz",
        *(path for path in before if path.startswith("runs/b1/")),
    }
    assert len({path.split("/")[1] for path in left if path.startswith("artifacts")}) == 1
    assert sync(results, store) == SyncCounts(present=1)
    assert list(active(store)) == ["b1"] and list(active(store, "study")) == ["second"]
    with pytest.raises(ConfigError, match="'first' has no runs"):
        plan_removal(results, "first")


def test_rm_keeps_a_run_that_another_study_has(make: Make, results: Path, store: Store) -> None:
    """Catches: a run removed from a study that has it too; a child of a deleted parent."""
    shared = make("a1", "first", data="wine")
    make("a2", "first", data="wine")
    RunFolder(shared).join("second")
    sync(results, store)
    plan = plan_removal(results, "first")
    assert "1 run of second too: not removed" in "\n".join(plan.lines())
    remove(plan)
    assert [study.name for study in studies(results)] == ["second"]
    tags, parents = active(store), active(store, "study")
    assert list(parents) == ["second"]
    parent = store.client.search_runs([store.experiment_id], "tags.kind = 'study'")[0].info.run_id
    assert (tags["a1"]["study"], tags["a1"]["mlflow.parentRunId"]) == ("second", parent)
    assert json.loads(tags["a1"]["studies"]) == ["second"]
    assert (results / "data" / "wine.npz").exists()
    assert sync(results, store) == SyncCounts(present=1)


def test_rm_refuses_what_a_process_works_on(make: Make, results: Path) -> None:
    """Catches: a folder deleted under a worker, or a study under a sweep that is between two runs."""
    folder = make("a1", "first", None)
    with (
        locks.exclusive_lock(folder / "lock"),
        pytest.raises(ConfigError, match="while a process works on run a1"),
    ):
        plan_removal(results, "first")
    path = study_lock(results, "first")
    path.parent.mkdir()
    with locks.exclusive_lock(path), pytest.raises(ConfigError, match="while a process works on it"):
        plan_removal(results, "first")
    plan = plan_removal(results, "first")
    with locks.exclusive_lock(folder / "lock"):  # begun after the plan was made
        assert [run.run_id for run in remove(plan)] == ["a1"]
    assert folder.exists()


def test_rm_keeps_data_while_another_sweep_runs(make: Make, results: Path) -> None:
    """Catches: deleted data that a sweep needs for runs that have not begun."""
    make("a1", "first", data="wine")
    path = study_lock(results, "second")
    path.parent.mkdir()
    with locks.exclusive_lock(path):
        remove(plan_removal(results, "first"))
    assert (results / "data" / "wine.npz").exists()


def test_rm_lists_runs_that_started_from_removed_ones(
    make: Make, results: Path, plain: dict[str, Any]
) -> None:
    """Catches: a run of another study that can't be repeated, without a warning."""
    make("a1", "first")
    make("b1", "second", init={**plain["init"], "from_run": "a1"})
    make("c1", "third", init={**plain["init"], "from_run": "b1"})
    text = "\n".join(plan_removal(results, "first").lines())
    assert "run b1 started from a1" in text and "c1" not in text
    assert "started from" not in "\n".join(plan_removal(results, "third").lines())


def test_rm_asks_first(make: Make, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a removal without confirmation on a terminal, or without --yes if there is no terminal."""
    make("a1", "first")
    command = [sys.executable, "-m", "harness", "study", "rm", "first", "--results-dir", str(results)]
    options: dict[str, Any] = {"cwd": ROOT, "text": True, "capture_output": True}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, **options)
    assert done.returncode == 2 and "--yes removes it without asking" in done.stderr
    for answer, exists in (("n", True), ("", True), ("y", False)):
        ours, theirs = pty.openpty()
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(command, stdin=theirs, **options)
        os.close(ours)
        os.close(theirs)
        assert done.returncode == 0, done.stderr
        assert "study 'first': 1 run" in done.stdout and "Remove it?" in done.stdout
        assert (results / "runs" / "a1").exists() == exists
    make("a1", "first")
    assert main.main(["study", "rm", "first", "--yes", "--results-dir", str(results)]) == 0
    assert not (results / "runs" / "a1").exists()


class Killed(BaseException):
    """Acts like a kill: it is never caught, and leaves no lock behind."""


def killed_after(calls: int, patch: pytest.MonkeyPatch) -> None:
    """Limit the number of changes by this process: deletions of MLflow runs, files and folders."""
    left = calls

    def stopping(owner: object, name: str) -> None:
        function = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return function(*arguments, **named)

        patch.setattr(owner, name, call)

    for owner, name in ((MlflowClient, "delete_run"), (os, "rename"), (os, "unlink"), (os, "rmdir")):
        stopping(owner, name)


@pytest.mark.slow
def test_rm_that_is_killed_is_finished_by_the_next_one(make: Make, results: Path, tmp_path: Path) -> None:
    """Catches: an order of deletions after which something stays that no command can name, or that `sync`
    restores."""
    make("a1", "first")
    make("a2", "first", None)
    RunFolder(make("a3", "first")).join("second")
    make("b1", "second")
    sync(results, open_store(results))
    whole = tmp_path / "whole"
    shutil.copytree(results, whole)
    stop, ended = 0, False
    while not ended:
        shutil.rmtree(results)
        shutil.copytree(whole, results)
        with pytest.MonkeyPatch.context() as patch:
            killed_after(stop, patch)
            try:
                remove(plan_removal(results, "first"))
                ended = True
            except Killed:
                pass
        store = open_store(results)
        counts = sync(results, store)  # another command in between
        assert (counts.added, counts.unreadable) == (0, 0), stop
        with contextlib.suppress(ConfigError):  # nothing was left to do
            assert remove(plan_removal(results, "first")) == []
        assert [study.name for study in studies(results)] == ["second"], stop
        assert sorted(active(store)) == ["a3", "b1"] and list(active(store, "study")) == ["second"], stop
        assert not any((results / ".removed").glob("*")), stop
        assert len(list((results / "artifacts").iterdir())) == 2, stop
        assert sync(results, store) == SyncCounts(present=2), stop
        stop += 1
    assert stop > 20
