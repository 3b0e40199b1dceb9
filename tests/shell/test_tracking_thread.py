"""The tracking thread: it gathers, retries and never blocks the session."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.core.storage import locks
from harness.core.validation import ConfigError
from harness.shell.tracking import background, run_links
from harness.shell.tracking.background import TrackingThread
from harness.shell.tracking.store import Store, open_store
from harness.shell.tracking.sync import SyncCounts, sync
from harness.shell.tracking.tracker import Tracker
from tests.support.paths import ROOT
from tests.support.tracked_runs import (
    METRICS,
    child,
    closed_port,
    end_run,
    epochs,
    make_run,
    points,
    running,
    trials,
    whole_run,
)


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
