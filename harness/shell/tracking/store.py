"""Open MLflow's store: by default an SQLite file in the results folder, otherwise any tracking URI.

MLflow creates and migrates a new database on first use, and processes that do so at the same time fail (seven
of eight in a test). So the first process opens the database under a file lock, creates it under a temporary
name, and switches SQLite to its write-ahead log, which lets the UI read while a sweep writes.

`import mlflow` takes seconds. It happens in `open_store`, which may run in a thread while the first worker
starts.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import shutil
import sqlite3
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from harness.core import fast_imports
from harness.core.storage import atomic, locks, user_cache
from harness.core.validation import ConfigError, Mistake
from harness.shell.tracking.uri import (
    hide_password,
    is_server,
    resolve_uri,
    sqlite_path,
    sqlite_uri,
    uri_error,
)
from harness.shell.tracking.views import view_tags

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

EXPERIMENT = "evenbench"
STORE_TAG = "evenbench.store"  # identifies the store, so that a recreated one differs from the deleted one
KIND_TAG = "mlflow.experimentKind"  # without it the UI opens the page for language-model applications

# Settings of MLflow, which the user's environment may override.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # it loses points at exit and hides errors
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default waits four minutes; TrackingThread retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}
# MLflow imports pandas if it is installed, but works without it, as its smaller distribution does.
NOT_NEEDED = ("pandas",)


class Unreachable(Exception):
    """The store does not answer. It may later, so this is not a mistake in the request."""


@dataclass(frozen=True)
class Store:
    """An opened store. `artifacts` is the local artifacts folder, None if a server stores them."""

    client: MlflowClient
    uri: str
    id: str
    experiment_id: str
    results_dir: Path
    results_id: str
    artifacts: Path | None

    @property
    def remote(self) -> bool:
        """Whether the store is behind a tracking server."""
        return is_server(self.uri)

    def search(self, query: str, deleted: bool = False) -> list[Run]:
        """Return this results folder's runs that match the query: active ones, or deleted ones."""
        from mlflow.entities import ViewType

        runs: list[Run] = []
        token: str | None = None
        query = f"tags.results = '{self.results_id}' and {query}"
        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        while True:
            page = self.client.search_runs([self.experiment_id], query, view, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs


def open_store(results_dir: Path, uri: str | None = None) -> Store:
    """Open (create, migrate) the store and its experiment; safe to call in several processes at once.

    Raises ConfigError for an invalid URI, Unreachable if the store does not answer.
    """
    uri = resolve_uri(results_dir, uri)
    results_dir = results_dir.absolute()
    _make_folder(results_dir)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    database = sqlite_path(uri)
    lock = results_dir / "store.lock" if database is None else database.with_name(database.name + ".lock")
    _make_folder(lock.parent)
    with locks.exclusive_lock(lock):
        if database is not None:
            _prepare_sqlite(database, uri)
        client = _connect(uri)
        artifacts = None if is_server(uri) else results_dir / "artifacts"
        experiment_id, store_id, location = _open_experiment(client, artifacts)
        results_id = _results_id(results_dir)
    if artifacts is not None and location != artifacts.as_uri():
        artifacts = Path(unquote(urlsplit(location).path)) if location.startswith("file:") else None
    return Store(client, uri, store_id, experiment_id, results_dir, results_id, artifacts)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            [Mistake("results_dir", f"can't create the folder {str(path)!r}: {error}")]
        ) from None


def _prepare_sqlite(path: Path, uri: str) -> None:
    """Create the database if it is missing, and enable the write-ahead log.

    Fails at once for a path that can't be written; MLflow would try for 100 s.
    """
    try:
        if not path.exists() or _is_empty(path):
            _make_sqlite(path)
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except (OSError, sqlite3.Error) as error:
        raise uri_error(f"can't open {uri!r}: {error}") from None


def _is_empty(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
        return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _make_sqlite(path: Path) -> None:
    """Create the tables in a temporary file, which replaces `path` when complete.

    A kill in the middle of MLflow's migrations leaves tables that make every later migration fail. Migrations
    take a second, so the file is stored in the user's cache for each version of MLflow.
    """
    _import_mlflow(sqlite_uri(path))
    import sqlalchemy
    from mlflow.store.db import utils

    template = f"mlflow-{importlib.metadata.version('mlflow')}.db"
    atomic.remove_half_written(path)
    with atomic.atomic_write(path) as draft:
        draft.touch()  # raises if it can't be written
        try:
            shutil.copyfile(user_cache.folder() / template, draft)
        except OSError:  # missing or unreadable
            engine = sqlalchemy.create_engine(sqlite_uri(draft), poolclass=sqlalchemy.NullPool)
            utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
            user_cache.store(template, functools.partial(shutil.copyfile, draft))
        for log in ("-wal", "-shm"):  # of a file without tables; SQLite would apply them to the new one
            path.with_name(path.name + log).unlink(missing_ok=True)


def _import_mlflow(uri: str) -> None:
    """Import MLflow's client, and its database code for a database URI; takes seconds."""
    with fast_imports.fast_import(without=NOT_NEEDED):
        import mlflow.tracking

        if not is_server(uri):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def _connect(uri: str) -> MlflowClient:
    _import_mlflow(uri)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    if is_server(uri):
        return MlflowClient(tracking_uri=uri)
    import sqlalchemy

    try:
        sqlalchemy.create_engine(uri).connect().close()
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)  # makes the client open the database
    except sqlalchemy.exc.OperationalError as error:
        raise Unreachable(f"{hide_password(uri)} does not answer: {_first_line(error)}") from error
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise uri_error(f"can't open {hide_password(uri)!r}: {_first_line(error)}") from error
    return client


def _open_experiment(client: MlflowClient, artifacts: Path | None) -> tuple[str, str, str]:
    """Find or create the experiment; return its id, the store's id, and the location of its artifacts."""
    from mlflow.exceptions import MlflowException

    tags = {STORE_TAG: uuid.uuid4().hex, KIND_TAG: "custom_model_development", **view_tags()}
    try:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            location = None if artifacts is None else artifacts.as_uri()
            try:
                client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another machine was faster
                    raise
            experiment = client.get_experiment_by_name(EXPERIMENT)
            assert experiment is not None
        if experiment.lifecycle_stage != "active":
            client.restore_experiment(experiment.experiment_id)
        for key, value in tags.items():
            if key not in experiment.tags:  # views that the user changed stay
                client.set_experiment_tag(experiment.experiment_id, key, value)
    except MlflowException as error:
        raise Unreachable(_first_line(error)) from error
    store_id = experiment.tags.get(STORE_TAG, tags[STORE_TAG])
    return experiment.experiment_id, store_id, experiment.artifact_location


def _results_id(results_dir: Path) -> str:
    """Return the id of this results folder, which distinguishes its runs in a shared store."""
    path = results_dir / ".results-id"
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(uuid.uuid4().hex + "\n")
        # link() fails if the name exists, so of two processes that arrive at once one wins
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
    return path.read_text().strip()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else type(error).__name__
