"""Studies: listed, shown, shared, removed; and removed again after a kill.

Where it matters how a command leaves runs, they are real ones of the framework in tests/support/faulty.
Elsewhere they are run folders as in test_tracking. MLflow is a real SQLite store.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from harness.core.runs.run_folder import RunFolder
from harness.core.storage import locks
from harness.core.storage.json_files import write_json
from harness.core.validation import ConfigError
from harness.shell.commands import main
from harness.shell.studies.listing import print_studies, print_study, studies
from harness.shell.studies.members import load_outcomes
from harness.shell.studies.removal import plan_removal, remove
from harness.shell.tracking import run_links
from harness.shell.tracking.store import Store, open_store
from harness.shell.tracking.studies import study_lock
from harness.shell.tracking.sync import SyncCounts, sync
from tests.support.compose import composing, config_of
from tests.support.paths import ROOT
from tests.support.workspace import Workspace, check_consistent, cleanup, end

T0 = 1_760_000_000_000


@pytest.fixture(scope="module")
def plain() -> Iterator[dict[str, Any]]:
    """A real configuration in plain form."""
    with composing():
        yield config_of("data=iris").to_plain()


Make = Callable[..., Path]


@pytest.fixture
def make(results: Path, plain: dict[str, Any]) -> Make:
    """`make("a1", "first", seed=1)`: the folder of a run; `status=None` for one that has not ended."""

    def run(
        run_id: str, study: str, status: str | None = "finished", data: str = "iris", **keys: Any
    ) -> Path:
        folder = RunFolder(results / "runs" / run_id)
        config = {**plain, "study": study, "results_dir": str(results), **keys}
        file = f"data/{data}.npz"
        (results / "data").mkdir(exist_ok=True)
        (results / file).write_bytes(b"rows")
        folder.write_job({"run_id": run_id, "study": study, "config": config, "data_file": file})
        events = [{"event": "epoch", "epoch": n, "time_ms": T0 + 1000 * n} for n in (1, 2)]
        for event in events:
            folder.append_event({**event, "metrics": {"val/loss": 1.0}})
        if status is not None:
            error = None if status == "finished" else {"type": "exit", "message": "exited with [bold]3"}
            metrics = {} if error else {"test/accuracy": 0.75, "time/train_s": 1.5, "speed/step_ms": 1.0}
            result = {
                "run_id": run_id,
                "status": status,
                "error": error,
                "metrics": metrics,
                "epochs": events,
            }
            (folder.path / "weights.npz").write_bytes(b"w" * 1000)
            write_json(folder.path / "result.json", result)
        return folder.path

    return run


def active(store: Store, kind: str = "trial") -> dict[str, dict[str, str]]:
    """The tags of MLflow's active runs, by run id or by study."""
    runs = store.client.search_runs([store.experiment_id], f"tags.kind = '{kind}'")
    return {run.data.tags["run_id" if kind == "trial" else "study"]: run.data.tags for run in runs}


def files(results: Path) -> set[str]:
    """The files in the folders that runs fill."""
    return {
        str(path.relative_to(results))
        for top in ("runs", "data", "artifacts", "searches", ".removed")
        for path in (results / top).rglob("*")
        if path.is_file()
    }


# -- looking ------------------------------------------------------------------------------------


def test_ls_counts_runs_by_status(make: Make, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a live run counted as killed or the other way round, sizes without subfolders, file times in
    place of the runs' own times, the latest study not at the end."""
    make("a1", "first", seed=1)
    failed = make("a2", "first", "failed", seed=2)
    (failed / "attempts" / "1").mkdir(parents=True)
    (failed / "attempts" / "1" / "weights.npz").write_bytes(b"w" * 5_000_000)
    make("a3", "first", None, seed=3)
    going = make("a4", "first", None, seed=4)
    RunFolder(make("b1", "second")).append_event({"event": "epoch", "time_ms": T0 + 60_000})
    with locks.exclusive_lock(going / "lock"):
        first, second = studies(results)
        assert main.main(["study", "ls", "--results-dir", str(results)]) == 0
    assert (first.name, second.name) == ("first", "second")
    assert first.runs == {"finished": 1, "failed": 1, "unfinished": 1, "running": 1}
    assert (first.models, first.frameworks) == (["fnn"], ["torch"])
    assert (first.first_s, first.last_s, second.last_s) == (T0 / 1e3 + 1, T0 / 1e3 + 2, T0 / 1e3 + 60)
    assert 5.0 < first.size_mb < 5.1
    printed = capsys.readouterr().out
    assert "1 finished, 1 failed, 1 unfinished, 1 running" in printed
    print_studies(results, as_json=True)
    assert [study["name"] for study in json.loads(capsys.readouterr().out)] == ["first", "second"]


def test_show_separates_shared_settings_from_axes(
    make: Make, results: Path, plain: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: an axis shown as shared or left out, a missing seed, a reason swallowed as markup, a job of
    another version that stops the command."""
    fast = {**plain["optimizer"], "learning_rate": 0.01}
    make("a1", "first", seed=1)
    make("a2", "first", "failed", seed=2, optimizer=fast)
    make("a3", "first", None, seed=2, key_of_a_later_version=7)
    print_study(results, "first", as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert [run["axes"]["optimizer.learning_rate"] for run in report["runs"]] == ["0.001", "0.01", "0.001"]
    assert [run["axes"]["seed"] for run in report["runs"]] == ["1", "2", "2"]
    assert [run["status"] for run in report["runs"]] == ["finished", "failed", "unfinished"]
    assert report["runs"][0]["score"] == 0.75
    assert report["shared"]["repeat"] == "0" and report["shared"]["model"] == "fnn"
    assert not {"seed", "optimizer.learning_rate"} & set(report["shared"])
    assert main.main(["study", "show", "first", "--results-dir", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "a2 failed: exit: exited with [bold]3" in printed
    assert "data=iris" in printed and "accuracy 0.750" in printed


@pytest.mark.parametrize("action", ["show", "rm"])
def test_an_unknown_study_is_refused_with_the_nearest(
    action: str, make: Make, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a traceback, an empty table, a removal of nothing that reports success."""
    make("a1", "first")
    assert main.main(["study", action, "frist", "--results-dir", str(results)]) == 2
    assert "'frist' has no runs; did you mean 'first'?" in capsys.readouterr().err
    assert main.main(["study", "lss"]) == 2
    assert "did you mean 'ls'?" in capsys.readouterr().err


# -- a run in several studies ---------------------------------------------------------------------


def test_a_run_belongs_to_every_study_that_includes_it(tmp_path: Path) -> None:
    """Catches: a study that loses a run to the next study that repeats it, a membership that can't be
    restored, a partial line that hides the next one."""
    folder = RunFolder(tmp_path / "a1")
    folder.write_job({"study": "first"})
    assert folder.studies() == ["first"]
    assert folder.join("second") and not folder.join("second") and not folder.join("first")
    folder.write_job({"study": "third"})  # done again, with force=true
    assert sorted(folder.studies()) == ["first", "second", "third"]
    folder.leave("first")
    folder.leave("third")
    assert folder.studies() == ["second"]
    with (folder.path / "studies.jsonl").open("a") as file:
        file.write('\n{"study": "fou')
    folder.join("fourth")
    assert folder.studies() == ["second", "fourth"]
    folder.write_job({"study": "first"})
    assert folder.studies() == ["second", "fourth", "first"]


def test_a_shared_run_is_listed_in_both_studies(make: Make, results: Path, store: Store) -> None:
    """Catches: a second study without the run in its table or in MLflow, an MLflow run created again for it
    (which loses the users' notes there), a sync that is never up to date."""
    shared = make("a1", "first", seed=1)
    make("b1", "second", seed=2)
    assert sync(results, store) == SyncCounts(added=2)
    before = run_links.read_link(shared)
    RunFolder(shared).join("second")
    assert sync(results, store) == SyncCounts(present=1, completed=1)
    assert sync(results, store) == SyncCounts(present=2)
    link = run_links.read_link(shared)
    assert before is not None and link is not None and link.run_id == before.run_id
    assert len(load_outcomes(results, "first")) == 1
    assert len(load_outcomes(results, "second")) == 2
    assert {study.name: study.runs for study in studies(results)} == {
        "first": {"finished": 1},
        "second": {"finished": 2},
    }
    parents = active(store, "study")
    assert json.loads(active(store)["a1"]["studies"]) == ["first", "second"]
    query = parents["second"]["mlflow.note.content"].split("`")[1]
    runs = store.client.search_runs([store.experiment_id], query)
    assert {run.data.tags["run_id"] for run in runs} == {"a1", "b1"}
    assert "mlflow.note.content" not in parents["first"]


# -- removing --------------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_the_command_shares_runs_between_studies(tmp_path: Path, template: Path) -> None:
    """Catches: a study that stays empty because its runs were done before, a run removed from the study that
    did it first; for runs done earlier, in the same sweep, and repeated with force=true."""
    with cleanup(Workspace(tmp_path, template)) as workspace:
        assert end(workspace.sweep("seed=range(2)", "study=first"))[0] == 0
        status, printed = end(workspace.sweep("seed=range(3)", "study=second,third"))
        assert (status, "1 run to do, 2 runs finished before" in printed) == (0, True), printed
        assert end(workspace.sweep("seed=0", "study=fourth", "force=true"))[0] == 0
        studies_by_seed = {run.config["seed"]: run.folder.studies() for run in workspace.runs()}
        assert {seed: set(names) for seed, names in studies_by_seed.items()} == {
            0: {"first", "second", "third", "fourth"},
            1: {"first", "second", "third"},
            2: {"second", "third"},
        }
        assert {tracked.tags["study"] for tracked in workspace.tracked("study")} == set(studies_by_seed[0])
        assert {tracked.status for tracked in workspace.tracked("study")} == {"FINISHED"}
        studies_by_run = {run.folder.run_id: run.folder.studies() for run in workspace.runs()}
        for tracked in (tracked for tracked in workspace.tracked() if tracked.active):
            assert json.loads(tracked.tags["studies"]) == studies_by_run[tracked.tags["run_id"]]
        check_consistent(workspace)
        assert {study.name: study.runs for study in studies(workspace.results)}["third"] == {"finished": 3}
