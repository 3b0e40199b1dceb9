"""MLflow as a copy of the run folders: real SQLite stores, real kills, and a server that isn't there."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.core.config.flatten import flatten
from harness.core.storage import locks
from harness.core.validation import ConfigError
from harness.shell.tracking import background, run_links
from harness.shell.tracking.background import TrackingThread
from harness.shell.tracking.store import Store, open_store
from harness.shell.tracking.sync import SyncCounts, close_orphans, sync, sync_run
from harness.shell.tracking.tracker import Tracker
from harness.shell.tracking.uri import resolve_uri
from harness.shell.tracking.views import view_tags
from tests.support.paths import ROOT

T0 = 1_760_000_000_000  # a unix time in ms, long past, so that no clock returns it by accident
METRICS = {"train/loss", "val/loss", "val/accuracy"}


def config(seed: int) -> dict[str, Any]:
    return {
        "model": {"name": "fnn", "layers": [{"kind": "dense", "units": 8}, {"kind": "output"}]},
        "framework": {"name": "torch", "backend": None},
        "data": {"name": "digits"},
        "optimizer": {"kind": "adam", "learning_rate": 0.001},
        "train": {"epochs": 3, "batch_size": 32},
        "seed": seed,
        "repeat": 0,
        "precision": "float32",
    }


def epochs(attempt: int = 0, count: int = 3) -> list[dict[str, Any]]:
    return [
        {
            "event": "epoch",
            "time_ms": T0 + 100_000 * attempt + 1000 * epoch,
            "epoch": epoch,
            "metrics": {"train/loss": 1.0 / epoch, "val/loss": 2.0 / epoch, "val/accuracy": 1 - 0.5 / epoch},
        }
        for epoch in range(1, count + 1)
    ]


def make_run(results: Path, run_id: str, study: str = "main", seed: int = 0) -> tuple[Path, dict[str, Any]]:
    """The folder of a run that is about to start."""
    folder = results / "runs" / run_id
    folder.mkdir(parents=True)
    job = {"run_id": run_id, "study": study, "config": config(seed)}
    (folder / "job.json").write_text(json.dumps(job))
    return folder, job


def end_run(folder: Path, attempt: int = 0, **changes: Any) -> dict[str, Any]:
    """Write what a worker leaves behind, and return the result."""
    records = epochs(attempt)
    (folder / "events.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = {
        "run_id": folder.name,
        "status": "finished",
        "error": None,
        "metrics": {"test/accuracy": 0.9, "test/loss": 0.3, "speed/step_ms": 1.5, "val/loss": 2.0 / 3},
        "epochs": records,
        "timing": {"disturbed": []},
        "environment": {"python": "3.11.2", "packages": {"torch": "2.13.0"}, "flags": "x" * 200},
        "certificate": None,
        **changes,
    }
    (folder / "weights.npz").write_bytes(b"weights" + bytes([attempt]))
    (folder / "worker.log").write_text("epoch 1\n")
    (folder / "result.json").write_text(json.dumps(result))
    return result


def whole_run(results: Path, run_id: str, **changes: Any) -> Path:
    folder, _ = make_run(results, run_id)
    end_run(folder, **changes)
    return folder


def trials(store: Store, query: str = "") -> list[Any]:
    filters = "tags.kind = 'trial'" + (f" and {query}" if query else "")
    return list(store.client.search_runs([store.experiment_id], filters))


def running(store: Store) -> list[Any]:
    return list(store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'"))


def points(store: Store, run_id: str) -> list[tuple[str, int, int, float]]:
    """Every metric point of an MLflow run: key, timestamp, step, value."""
    keys = store.client.get_run(run_id).data.metrics
    history = [point for key in sorted(keys) for point in store.client.get_metric_history(run_id, key)]
    return [(point.key, point.timestamp, point.step, point.value) for point in history]


def dump(store: Store) -> list[str]:
    """Everything the database holds, as SQL."""
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(store.results_dir / "mlflow.db")) as connection:
        return sorted(connection.iterdump())


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def child(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Another Python process with this file's helpers."""
    here = Path(__file__).resolve()
    paths = os.pathsep.join([str(ROOT), str(here.parent)])
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from tests.shell.test_tracking import *\nimport sys, time\n{code}",
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": paths},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


# -- opening ----------------------------------------------------------------------------------


def test_the_default_store_is_sqlite_next_to_its_artifacts(store: Store, results: Path) -> None:
    """Catches: a relative URI, artifacts in the working folder, a journal that blocks readers."""
    import sqlite3

    assert store.uri == f"sqlite:///{results}/mlflow.db"
    assert store.artifacts == results / "artifacts"
    assert sqlite3.connect(results / "mlflow.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_moved_store_is_recognised_and_a_recreated_one_is_new(
    store: Store, results: Path, template: Path, tmp_path: Path
) -> None:
    """Catches: links trusted though the database was recreated, or not since it moved; views overwritten."""
    whole_run(results, "a1")
    sync(results, store)
    view = next(iter(view_tags()))
    store.client.set_experiment_tag(store.experiment_id, view, "as its user likes it")
    assert {open_store(results).id for _ in range(3)} == {store.id}
    assert store.client.get_experiment(store.experiment_id).tags[view] == "as its user likes it"
    moved = shutil.copytree(results, tmp_path / "moved")
    assert sync(moved, open_store(moved)) == SyncCounts(present=1)
    recreated = shutil.copytree(results, tmp_path / "recreated", ignore=shutil.ignore_patterns("mlflow.db*"))
    shutil.copyfile(template, recreated / "mlflow.db")
    assert sync(recreated, open_store(recreated)) == SyncCounts(added=1)


@pytest.mark.usefixtures("own_cache")
def test_two_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    """Catches: the migration race, two experiments, two identities."""
    code = "store = open_store(Path(sys.argv[1])); print(store.experiment_id, store.id, store.results_id)"
    processes = [child(code, str(tmp_path / "results")) for _ in range(3)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    assert len({output for output, _ in answers}) == 1


KILLED = """
import os, sys
from pathlib import Path
import sqlalchemy
from harness.shell.tracking.store import open_store
done = 0
@sqlalchemy.event.listens_for(sqlalchemy.Engine, "after_cursor_execute")
def count(*_):
    global done
    done += 1
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
open_store(Path(sys.argv[1]))
"""


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("statements", [1, 300, 1000])
def test_a_kill_while_the_store_is_created_is_repaired(
    tmp_path: Path, statements: int, repository: Path
) -> None:
    """Catches: a database with half of its tables, which no command can log to."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(statements)], cwd=repository, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert open_store(tmp_path).client.search_runs(["0"]) == []
    assert list(tmp_path.glob(".*.tmp*")) == []


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("mlruns", "did you mean 'sqlite:////"),
        ("file:///tmp/mlruns", "no longer stores runs in plain folders"),
        ("sqllite:///a.db", "did you mean 'sqlite:///a.db'"),
        ("htp://host:5000", "did you mean 'http://host:5000'"),
        ("http://:5000", "has no host"),
        ("http://host:port", "port"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_a_wrong_uri_is_a_mistake_with_a_suggestion(tmp_path: Path, uri: str, says: str) -> None:
    """Catches: a traceback, or a run that starts and is lost, for a typo in tracking.uri."""
    with pytest.raises(ConfigError) as caught:
        resolve_uri(tmp_path, uri)
    assert caught.value.mistakes[0].key == "tracking.uri"
    assert says in str(caught.value) and "allowed:" in str(caught.value)


def test_a_file_that_is_not_a_database_is_a_mistake(tmp_path: Path) -> None:
    """Catches: MLflow's hundred seconds of retries, or its traceback."""
    (tmp_path / "notes.db").write_text("this is not a database, but long enough to look like one  " * 40)
    with pytest.raises(ConfigError, match="not a database"):
        open_store(tmp_path, f"sqlite:///{tmp_path}/notes.db")


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    """Catches: the password of a database in an error message."""
    with pytest.raises(ConfigError) as caught:
        open_store(tmp_path, "mssql+nodriver://user:secret@host/name")
    assert "secret" not in str(caught.value)


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


# -- sync -------------------------------------------------------------------------------------


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


# -- the thread -------------------------------------------------------------------------------


def test_metrics_show_while_the_run_executes(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: epochs that are withheld until the run ends."""
    monkeypatch.setattr(background, "BATCH_S", 0.0)
    folder, job = make_run(results, "a1")
    with TrackingThread(results) as tracking:
        store = tracking.wait_open()
        assert store is not None
        tracking.study("main")
        tracking.begin(folder, job)
        for record in epochs():
            tracking.epochs(folder, [record])
        tracking.flush()
        (trial,) = trials(store)
        assert trial.info.status == "RUNNING" and set(trial.data.metrics) >= METRICS
        history = store.client.get_metric_history(trial.info.run_id, "val/loss")
        assert [point.step for point in history] == [1, 2, 3]
        tracking.finish(folder, end_run(folder))
        tracking.finish_study("main")
        assert tracking.close().folders == ()
    assert running(store) == []


def test_epochs_are_gathered_in_order(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: one call to MLflow per epoch, epochs before `begin` or after `finish`; a short run with
    separate calls for its begin, epochs or params, or with epochs or params logged twice or not at all.
    """
    calls: list[tuple[str, str, int]] = []

    def spy(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Tracker, folder: Path, what: Any, *more: Any, **named: Any) -> Any:
            calls.append((name, folder.name, len(what)))
            return method(self, folder, what, *more, **named)

        return call

    for name in ("begin", "epochs", "finish", "whole"):
        monkeypatch.setattr(Tracker, name, spy(name, getattr(Tracker, name)))
    monkeypatch.setattr(background, "BATCH_S", 3600)
    warnings: list[str] = []
    with TrackingThread(results, warn=warnings.append) as tracking:
        folders = [make_run(results, run_id) for run_id in ("a1", "a2")]
        for folder, job in folders:
            tracking.begin(folder, job)
        for record in epochs():
            for folder, _ in folders:
                tracking.epochs(folder, [record])
        short, long = (folder for folder, _ in folders)
        tracking.finish(short, end_run(short))
        tracking.flush()
        tracking.finish(long, end_run(long))
    assert not warnings and len([name for name, _, _ in calls if name == "finish"]) == 2
    for folder, expected in ((short, ["whole", "finish"]), (long, ["begin", "epochs", "finish"])):
        mine = {name: size for name, folder_name, size in calls if folder_name == folder.name}
        assert list(mine) == expected and mine.get("epochs", 3) == 3
    runs = trials(open_store(results))
    assert {len(points(open_store(results), run.info.run_id)) for run in runs} == {12}
    assert [run.data.params["optimizer.learning_rate"] for run in runs] == ["0.001"] * 2


def test_a_run_whose_logging_was_interrupted_is_completed(
    store: Store, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a run that stays without params or metrics because a kill came right after `create_run`; or
    one that exists twice."""
    folder, job = make_run(results, "a1")
    result = end_run(folder)

    class Cut(BaseException):
        pass

    def cut(*_: Any, **__: Any) -> None:
        raise Cut

    tracker = Tracker(store)
    tracker.studies.open("main")
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(store.client, "log_batch", cut)
        tracker.whole(folder, job, result)
    assert sync(results, store).completed == 1
    (run,) = trials(store)
    assert run.info.status == "FINISHED" and run.data.params["optimizer.learning_rate"] == "0.001"
    assert len(points(store, run.info.run_id)) == 12


def test_an_unreachable_server_loses_nothing(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a dead server that stops or slows a sweep, a warning per call, and runs that never arrive."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(background, "TRIES", 2)
    warnings: list[str] = []
    uri = f"http://127.0.0.1:{closed_port()}"
    with TrackingThread(results, uri, warn=warnings.append) as tracking:
        tracking.close_orphans()
        tracking.study("main")
        folders = [make_run(results, run_id) for run_id in ("a1", "a2")]
        for folder, job in folders:
            tracking.begin(folder, job)
            tracking.epochs(folder, epochs())
            tracking.finish(folder, end_run(folder))
        tracking.finish_study("main")
        assert tracking.wait_open() is None
        missed = tracking.close()
    assert set(missed.folders) == {folder for folder, _ in folders} and missed.error
    assert len(warnings) == 1 and "evenbench sync" in warnings[0]
    assert not list(results.glob("runs/*/mlflow.json"))

    store = open_store(results)
    assert sync(results, store) == SyncCounts(added=2)
    for run in trials(store):
        assert run.info.status == "FINISHED" and len(points(store, run.info.run_id)) == 3 * 3 + 3


def test_an_unsynced_run_is_logged_when_it_ends(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a short outage that keeps a run out of MLflow although the store is back."""
    failures = [ConnectionError("down for a moment")]
    method = Tracker.epochs

    def fail_once(self: Tracker, folder: Path, records: Any) -> None:
        if failures:
            raise failures.pop()
        method(self, folder, records)

    monkeypatch.setattr(Tracker, "epochs", fail_once)
    for name, value in (("TRIES", 1), ("PAUSE_S", 0.0), ("BATCH_S", 0.0)):
        monkeypatch.setattr(background, name, value)
    warnings: list[str] = []
    with TrackingThread(results, warn=warnings.append) as tracking:
        folder, job = make_run(results, "a1")
        tracking.begin(folder, job)
        tracking.epochs(folder, epochs())
        tracking.flush()
        tracking.finish(folder, end_run(folder))
        tracking.flush()
        store = open_store(results)
        (run,) = trials(store)
        assert tracking.close().folders == ()
    assert len(warnings) == 1
    assert run.info.status == "FINISHED" and len(points(store, run.info.run_id)) == 3 * 3 + 3


def test_a_run_that_cannot_be_logged_does_not_delay_the_others(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: one run's error taken for an outage, so that no run of the next half minute is logged."""
    monkeypatch.setattr(background, "TRIES", 1)
    warnings: list[str] = []
    with TrackingThread(results, warn=warnings.append) as tracking:
        bad, _ = make_run(results, "bad")
        tracking.begin(bad, {"config": {}})
        folder, job = make_run(results, "good")
        tracking.begin(folder, job)
        tracking.finish(folder, end_run(folder))
        tracking.flush()
        (run,) = trials(open_store(results))
        assert run.info.status == "FINISHED" and run.data.tags["run_id"] == "good" and len(warnings) == 1
        assert tracking.close().folders == (bad,)


def test_a_mistake_on_opening_is_raised_to_the_session(tmp_path: Path) -> None:
    """Catches: a wrong URI that is reported as an outage, run after run."""
    (tmp_path / "notes.db").write_text("no database " * 200)
    with (
        TrackingThread(tmp_path, f"sqlite:///{tmp_path}/notes.db", warn=lambda _: None) as tracking,
        pytest.raises(ConfigError, match="not a database"),
    ):
        tracking.wait_open()


def test_the_old_link_is_gone_as_soon_as_a_run_begins(results: Path) -> None:
    """Catches: a kill before the thread reaches `begin` that lets sync mix two attempts in one MLflow run."""
    folder, job = make_run(results, "a1")
    tracker = Tracker(open_store(results))
    tracker.begin(folder, job)
    tracker.epochs(folder, epochs())
    # The thread opens its store under a lock that is held here, so it can't have reached `begin`.
    with locks.exclusive_lock(results / "mlflow.db.lock"):
        tracking = TrackingThread(results)
        tracking.begin(folder, job)
        assert run_links.read_link(folder) is None
    tracking.close()


def test_importing_the_trackers_does_not_import_mlflow() -> None:
    """Catches: seconds of import before the first worker can be started."""
    modules = "harness.shell.tracking.background, harness.shell.tracking.server"
    code = f"import sys, {modules}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_a_lock_is_seen_while_it_is_held(results: Path, store: Store) -> None:
    """Catches: sync writing to a run that another process is executing."""
    folder = whole_run(results, "a1")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sync(results, store) == SyncCounts(live=1)
    assert sync(results, store) == SyncCounts(added=1)


def test_a_locked_store_does_not_block_the_session(results: Path) -> None:
    """Catches: calls of the session that wait for MLflow: they only queue, so a blocked store can't block
    them."""
    tracking = TrackingThread(results)
    store = tracking.wait_open()
    assert store is not None
    blocker = child(
        "import sqlite3\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN EXCLUSIVE')\n"
        "print('ready', flush=True); sys.stdin.read()",
        str(results / "mlflow.db"),
        stdin=subprocess.PIPE,
    )
    assert blocker.stdout is not None and blocker.stdout.readline() == "ready\n"
    folder, job = make_run(results, "a1")
    tracking.begin(folder, job)
    tracking.epochs(folder, epochs())
    tracking.finish(folder, end_run(folder))
    flush = threading.Thread(target=tracking.flush, daemon=True)
    flush.start()
    flush.join(0.3)
    assert flush.is_alive()  # the store is locked, and none of the calls above has blocked
    blocker.communicate("")
    assert tracking.close().folders == () and len(trials(store)) == 1
