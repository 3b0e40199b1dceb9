"""Studies: listed, shown, shared, removed; and removed again after a kill.

Where it matters how a command leaves runs, they are real ones of the framework in tests/support/faulty.
Elsewhere they are run folders as in test_tracking. MLflow is a real SQLite store.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.core.runs.run_folder import RunFolder
from harness.core.storage import locks
from harness.shell.commands import main
from harness.shell.studies.listing import print_studies, print_study, studies
from harness.shell.studies.members import load_outcomes
from harness.shell.tracking import run_links
from harness.shell.tracking.store import Store
from harness.shell.tracking.sync import SyncCounts, sync
from tests.shell.conftest import T0
from tests.support.study_folders import Make, active
from tests.support.workspace import Workspace, check_consistent, cleanup, end

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
