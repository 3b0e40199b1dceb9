"""`evenbench sync`: run folders are the truth, MLflow is brought up to date with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from harness.shell.tracking import run_links
from harness.shell.tracking.store import Store, open_store
from harness.shell.tracking.sync import SyncCounts, close_orphans, sync
from harness.shell.tracking.tracker import Tracker
from tests.support.tracked_runs import T0, dump, end_run, epochs, make_run, points, running, trials, whole_run


def test_sync_twice_changes_nothing(store: Store, results: Path) -> None:
    """Catches: anything that sync writes a second time: points, runs, tags, end times."""
    whole_run(results, "a1")
    whole_run(results, "a2", status="failed", error={"type": "E", "message": "m", "log_tail": ""})
    folder, _ = make_run(results, "a3")  # killed before it wrote anything
    (results / "runs" / "junk").mkdir()
    assert sync(results, store) == SyncCounts(added=3, unreadable=1)
    before = dump(store)
    assert sync(results, store) == SyncCounts(present=3, unreadable=1)
    assert dump(store) == before
    assert sorted(run.info.status for run in trials(store)) == ["FAILED", "FINISHED", "KILLED"]
    assert running(store) == [] and run_links.read_link(folder) is not None


def test_sync_completes_what_a_crash_cut_off(store: Store, results: Path) -> None:
    """Catches: the rest of a half-logged run missing, or a torn last line of events breaking sync."""
    folder, job = make_run(results, "a1")
    tracker = Tracker(store)
    run_id = tracker.begin(folder, job)
    tracker.epochs(folder, epochs(count=1))
    end_run(folder)
    with (folder / "events.jsonl").open("a") as events:
        events.write('{"event": "epoch", "time_')
    tracker.studies.close()
    assert sync(results, store) == SyncCounts(completed=1)
    (run,) = trials(store)
    assert run.info.run_id == run_id and run.info.status == "FINISHED"
    assert len(points(store, run_id)) == 3 * 3 + 3


def test_sync_skips_what_a_crash_of_the_machine_damaged(store: Store, results: Path) -> None:
    """Catches: one damaged file that keeps all other runs out of MLflow."""
    damaged, partial = whole_run(results, "a1"), whole_run(results, "a2")
    (damaged / "job.json").write_text("{")
    first, *others = (partial / "events.jsonl").read_text().splitlines(keepends=True)
    (partial / "events.jsonl").write_text("".join([first, "\0" * 20 + "\n", *others]))
    assert sync(results, store) == SyncCounts(added=1, unreadable=1)
    (run,) = trials(store)
    assert len(points(store, run.info.run_id)) == 3 * 3 + 3


def test_sync_fills_a_different_store_and_a_recreated_one(
    store: Store, results: Path, template: Path, tmp_path: Path
) -> None:
    """Catches: links that are trusted although their store is gone or a different one."""
    whole_run(results, "a1")
    assert sync(results, store).added == 1
    shutil.copyfile(template, tmp_path / "other.db")
    other = open_store(results, f"sqlite:///{tmp_path}/other.db")
    assert sync(results, other) == SyncCounts(added=1)
    assert len(trials(other)) == 1
    assert sync(results, store) == SyncCounts(added=1) and len(trials(store)) == 1


def test_sync_does_not_mix_attempts(store: Store, results: Path) -> None:
    """Catches: a killed attempt's points among its successor's, if the session died before `begin`."""
    folder, job = make_run(results, "a1")
    tracker = Tracker(store)
    (folder / "events.jsonl").write_text(json.dumps(epochs(count=1)[0]) + "\n")
    tracker.begin(folder, job)
    tracker.epochs(folder, epochs(count=1))
    end_run(folder, attempt=1)
    tracker.studies.close()
    assert sync(results, store) == SyncCounts(added=1)
    (run,) = trials(store)
    assert len(points(store, run.info.run_id)) == 3 * 3 + 3 and running(store) == []


def test_sync_replaces_a_finished_run_that_was_repeated(store: Store, results: Path) -> None:
    """Catches: old numbers in MLflow of a run whose new attempt was not logged."""
    folder = whole_run(results, "a1")
    sync(results, store)
    end_run(folder, attempt=1)
    assert sync(results, store) == SyncCounts(added=1)
    (run,) = trials(store)
    assert {time_ms for _, time_ms, step, _ in points(store, run.info.run_id) if step == 1} == {T0 + 101_000}


def test_a_run_deleted_by_its_user_stays_deleted(store: Store, results: Path) -> None:
    """Catches: sync restoring what a user deleted in the UI."""
    whole_run(results, "a1")
    sync(results, store)
    store.client.delete_run(trials(store)[0].info.run_id)
    assert sync(results, store) == SyncCounts(present=1) and trials(store) == []


def test_runs_of_another_results_folder_are_left_alone(results: Path, tmp_path: Path) -> None:
    """Catches: closing or replacing a colleague's runs in a shared store."""
    uri = f"sqlite:///{results}/mlflow.db"
    theirs, mine = open_store(tmp_path / "theirs", uri), open_store(tmp_path / "mine", uri)
    folder, job = make_run(tmp_path / "theirs", "a1")
    Tracker(theirs).begin(folder, job)
    my_folder, my_job = make_run(tmp_path / "mine", "a1")
    tracker = Tracker(mine)
    assert close_orphans(tracker) == 0
    tracker.begin(my_folder, my_job)
    assert len(trials(mine)) == 2
