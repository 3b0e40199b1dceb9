"""The MLflow store: created whole, found again, shared by processes, and refused with a suggestion."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core.validation import ConfigError
from harness.shell.tracking.store import Store, open_store
from harness.shell.tracking.sync import SyncCounts, sync
from harness.shell.tracking.uri import resolve_uri
from harness.shell.tracking.views import view_tags
from tests.support.tracked_runs import child, whole_run


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
