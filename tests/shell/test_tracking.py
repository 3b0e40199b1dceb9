"""MLflow as a copy of the run folders: real SQLite stores, real kills, and a server that isn't there."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest

from harness.core.config.flatten import flatten
from harness.shell.tracking import run_links
from harness.shell.tracking.store import Store
from harness.shell.tracking.sync import close_orphans, sync_run
from harness.shell.tracking.tracker import Tracker
from tests.support.tracked_runs import (
    T0,
    child,
    end_run,
    epochs,
    make_run,
    points,
    running,
    trials,
    whole_run,
)

# -- one run ----------------------------------------------------------------------------------


def test_a_run_that_ends_has_all_of_its_epochs(store: Store, results: Path) -> None:
    """Catches: a missing epoch that a killed worker or parent wrote to the folder without logging it."""
    folder, job = make_run(results, "a")
    tracker = Tracker(store)
    tracker.begin(folder, job)
    result = end_run(folder)
    tracker.epochs(folder, epochs()[:1])
    tracker.finish(folder, result)
    (run,) = trials(store)
    logged = [
        (step, time_ms) for key, time_ms, step, _ in points(store, run.info.run_id) if key == "val/loss"
    ]
    assert sorted(logged) == [(epoch["epoch"], epoch["time_ms"]) for epoch in epochs()]
    assert run_links.read_link(folder) is not None
    assert sync_run(tracker, folder) == "present"


def test_a_run_is_a_child_of_its_study_with_params_tags_and_files(store: Store, results: Path) -> None:
    """Catches: a missing axis, lost params, private files among the artifacts, a wrong final status."""
    tracker = Tracker(store)
    parent = tracker.studies.open("main")
    folder, job = make_run(results, "a1")
    tracker.begin(folder, job)
    tracker.epochs(folder, epochs())
    (folder / "lock").touch()
    tracker.finish(folder, end_run(folder))
    tracker.studies.finish("main", metrics={"trials": 1})

    (run,) = trials(store)
    tags, params = run.data.tags, run.data.params
    assert run.info.run_name == "fnn torch digits s0" and run.info.status == "FINISHED"
    assert tags["mlflow.parentRunId"] == parent
    expected = {
        "model": "fnn",
        "framework": "torch",
        "optimizer": "adam",
        "seed": "0",
        "precision": "float32",
    }
    assert expected.items() <= tags.items()
    assert tags["environment.packages.torch"] == "2.13.0" and "environment.flags" not in tags
    assert params["optimizer.learning_rate"] == "0.001" and params["train.epochs"] == "3"
    assert json.loads(params["model.layers"])[0] == {"kind": "dense", "units": 8}
    names = {item.path for item in store.client.list_artifacts(run.info.run_id)}
    assert names == {"job.json", "events.jsonl", "result.json", "weights.npz", "worker.log"}
    study = store.client.get_run(parent)
    assert (study.info.status, study.data.metrics, study.data.tags["kind"]) == (
        "FINISHED",
        {"trials": 1.0},
        "study",
    )


def test_final_metrics_lie_at_step_0_and_leave_curves_alone(store: Store, results: Path) -> None:
    """Catches: one-dot lines in the UI, and a final value that distorts the curve of the same name."""
    tracker = Tracker(store)
    sync_run(tracker, whole_run(results, "a1"))
    steps = {}
    for key, _, step, _ in points(store, trials(store)[0].info.run_id):
        steps.setdefault(key, []).append(step)
    assert steps["test/accuracy"] == steps["speed/step_ms"] == [0]
    assert steps["val/loss"] == steps["train/loss"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("status", "shown"),
    [("failed", "FAILED"), ("timeout", "FAILED"), ("diverged", "FAILED"), ("killed", "KILLED")],
)
def test_a_failure_is_shown_with_its_reason(store: Store, results: Path, status: str, shown: str) -> None:
    """Catches: failures recorded as FINISHED, or without a reason; NaN, infinity or null breaking the log."""
    error = {"type": "ValueError", "message": 'it\'s the "loss"', "log_tail": ["a line", "the last line"]}
    odd = {"test/loss": math.nan, "train/loss": math.inf, "test/f1": None}
    folder = whole_run(results, "a1", status=status, error=error, metrics=odd, epochs=[])
    (folder / "events.jsonl").write_text("")
    sync_run(Tracker(store), folder)
    (run,) = trials(store)
    assert run.info.status == shown and run.data.tags["status"] == status
    assert run.data.tags["error"] == 'ValueError: it\'s the "loss"'
    assert "the last line" in run.data.tags["mlflow.note.content"]
    assert {key: math.isnan(value) for key, value in run.data.metrics.items()} == {
        "test/loss": True,
        "train/loss": True,
    }


def test_long_values_and_many_params_fit(store: Store, results: Path) -> None:
    """Catches: a run that can't be logged because a layer list is long or a config has over 100 keys."""
    folder, job = make_run(results, "a1")
    job["config"]["many"] = {f"key{index}": index for index in range(150)} | {"odd?key": "x" * 9000}
    tracker = Tracker(store)
    tracker.begin(folder, job)
    params = trials(store)[0].data.params
    assert len(params) == len(flatten(job["config"])) and len(params["many.odd_key"]) == 6000


def test_linked_artifacts_survive_the_next_attempt(store: Store, results: Path) -> None:
    """Catches: an artifact that is hard-linked to a file in the folder and changes with it."""
    folder = whole_run(results, "a1")
    sync_run(Tracker(store), folder)
    artifacts = results / "artifacts" / trials(store)[0].info.run_id / "artifacts"
    with (folder / "worker.log").open("a") as log:
        log.write("a later line\n")
    (folder / "result.tmp").write_text("{}")
    os.replace(folder / "result.tmp", folder / "result.json")
    assert (artifacts / "worker.log").read_text() == "epoch 1\n"
    assert json.loads((artifacts / "result.json").read_text())["run_id"] == "a1"


# -- again, and after a kill ------------------------------------------------------------------


def test_replaying_changes_nothing(store: Store, results: Path) -> None:
    """Catches: metrics that appear twice when a batch is logged again after an error."""
    tracker = Tracker(store)
    folder, job = make_run(results, "a1")
    run_id = tracker.begin(folder, job)
    result = end_run(folder)
    for _ in range(2):
        tracker.epochs(folder, epochs())
        tracker.finish(folder, result)
    seen = points(store, run_id)
    assert len(seen) == len(set(seen)) == 3 * 3 + 3
    assert {time_ms for _, time_ms, step, _ in seen if step == 2} == {T0 + 2000}


def test_a_repeated_run_replaces_the_old_one(store: Store, results: Path) -> None:
    """Catches: two active MLflow runs, and so two bars and two curves, for one run."""
    tracker = Tracker(store)
    folder, job = make_run(results, "a1")
    for attempt in range(2):
        tracker.begin(folder, job)
        tracker.epochs(folder, epochs(attempt))
        tracker.finish(folder, end_run(folder, attempt))
    (run,) = trials(store)
    assert {time_ms for _, time_ms, step, _ in points(store, run.info.run_id) if step == 1} == {T0 + 101_000}


def test_sigkill_between_begin_and_finish(store: Store, results: Path) -> None:
    """Catches: a run or a study left RUNNING forever, and duplicates when the killed run is repeated."""
    folder, job = make_run(results, "a1")
    process = child(
        "tracker = Tracker(open_store(Path(sys.argv[1])))\n"
        "tracker.studies.open('main')\n"
        "folder = Path(sys.argv[2])\n"
        "lock = (folder / 'lock').open('w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "tracker.begin(folder, json.loads((folder / 'job.json').read_text()))\n"
        "tracker.epochs(folder, epochs(count=2))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)",
        str(results),
        str(folder),
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    tracker = Tracker(store)
    assert len(running(store)) == 2
    assert (
        close_orphans(tracker) == 0 and sync_run(tracker, folder) == "live"
    )  # it is live, so it is not touched
    process.send_signal(signal.SIGKILL)
    process.wait()

    assert close_orphans(tracker) == 2
    assert running(store) == []
    assert [run.info.status for run in trials(store)] == ["KILLED"]
    tracker.studies.open("main")
    tracker.begin(folder, job)
    tracker.epochs(folder, epochs(1))
    tracker.finish(folder, end_run(folder, 1))
    tracker.studies.finish("main")
    assert running(store) == []
    (run,) = trials(store)
    assert run.info.status == "FINISHED"
    assert len([point for point in points(store, run.info.run_id) if point[0] == "val/loss"]) == 3
    assert len(store.client.search_runs([store.experiment_id], "tags.kind = 'study'")) == 1


def test_a_kill_right_after_the_run_was_created(
    store: Store, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: an MLflow run without a link that stays RUNNING, or stays next to its successor."""
    folder, job = make_run(results, "a1")
    tracker = Tracker(store)

    tracker.begin(folder, job)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_links, "write_link", die)
        with pytest.raises(KeyboardInterrupt):
            tracker.begin(folder, job)
    assert len(trials(store)) == 1 and run_links.read_link(folder) is None
    tracker.begin(folder, job)
    assert len(trials(store)) == 1
    tracker.finish(folder, end_run(folder))
    assert running(store) == []


def test_a_study_is_found_again_and_shared(store: Store) -> None:
    """Catches: two parent runs of a study, trouble with quotes, one process ending another's study."""
    name = 'it\'s "mine"'
    one, two = Tracker(store), Tracker(store)
    first = one.studies.open(name)
    assert two.studies.open(name) == first
    one.studies.finish(name)
    assert store.client.get_run(first).info.status == "RUNNING"  # the other still works on it
    two.studies.finish(name)
    assert store.client.get_run(first).info.status == "FINISHED"
    assert Tracker(store).studies.open(name) == first
    assert store.client.get_run(first).info.status == "RUNNING"
