"""Open the place where MLflow keeps runs: an SQLite file under `results/` by default, any tracking URI else.

MLflow creates and migrates a fresh database on first use, and processes that do so at once fail (seven of
eight in a test). So one process opens it under a file lock before anything else looks at it, makes a new one
under another name until it is whole, and switches SQLite to its write-ahead log, which lets the UI read while
a sweep writes.

`import mlflow` takes seconds, hence `resolve_uri` finds a user's mistakes without it, and the import happens
in `open_store`, which may run in a thread while the first worker starts.
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
from urllib.parse import urlsplit

from harness.core import fast_imports
from harness.core.storage import atomic, locks, user_cache
from harness.core.validation import ConfigError, Mistake, nearest
from harness.shell.tracking.views import view_tags

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "evenbench"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https")
ALLOWED = (
    "sqlite:////absolute/path.db, http://host:port, https://host, "
    "postgresql://user:password@host/name, mysql://..., mssql://..."
)
STORE_TAG = "evenbench.store"  # names the store itself, so that a deleted and recreated one is told apart
KIND_TAG = "mlflow.experimentKind"  # without it the UI opens the page for language-model applications

# Settings of MLflow that a user may still override from outside.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # it loses points at exit and hides errors
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default waits four minutes; the tracking thread retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}
# Of what MLflow imports where it is installed: data frames, which its smaller distribution does without too.
NOT_NEEDED = ("pandas",)


class Unreachable(Exception):
    """The store does not answer now. It may later, so it is no mistake in the request."""


@dataclass(frozen=True)
class Store:
    """An opened store. `artifacts` is the local folder of our artifacts, None where a server keeps them."""

    client: MlflowClient
    uri: str
    id: str
    experiment_id: str
    results_dir: Path
    results_id: str
    artifacts: Path | None

    @property
    def remote(self) -> bool:
        """Whether a tracking server stands between us and the database."""
        return is_server(self.uri)


def is_server(uri: str) -> bool:
    """Whether `uri` names a tracking server rather than a database."""
    return urlsplit(uri).scheme in SERVERS


def resolve_uri(results_dir: Path, uri: str | None) -> str:
    """The absolute tracking URI. Cheap: MLflow is not imported. Raises ConfigError."""
    if uri is None or not uri.strip():
        return _sqlite_uri(results_dir.absolute() / "mlflow.db")
    uri = uri.strip()
    scheme, separator, rest = uri.partition("://")
    dialect = scheme.partition("+")[0].lower()
    if not separator or dialect == "file":
        path = Path(urlsplit(uri).path or uri).absolute()
        path = path if path.suffix else path / "mlflow.db"
        raise _mistake(f"{uri!r} is a path; MLflow no longer keeps runs in plain folders", _sqlite_uri(path))
    if dialect in SERVERS:
        return _server_uri(uri)
    if dialect not in DATABASES:
        known = nearest(dialect, DATABASES + SERVERS)
        meant = f"{known}://{rest}" if known else ""
        raise _mistake(f"{scheme!r} in {uri!r} is no known kind of store", meant)
    if dialect != "sqlite":
        return uri
    path_text = rest.partition("?")[0].removeprefix("/")
    if not path_text or ":memory:" in path_text:
        raise _mistake(f"{uri!r} names no file, and a store in memory is lost with its process")
    return _sqlite_uri(Path(path_text).absolute())


def open_store(results_dir: Path, uri: str | None = None, experiment: str = EXPERIMENT) -> Store:
    """Open (create, migrate) the store and our experiment in it; any number of processes may do so at once.

    Raises ConfigError where the URI can't be right, Unreachable where the store does not answer.
    """
    uri = resolve_uri(results_dir, uri)
    results_dir = results_dir.absolute()
    _make_folder(results_dir)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    database = sqlite_path(uri)
    lock = results_dir / "store.lock" if database is None else database.with_name(database.name + ".lock")
    _make_folder(lock.parent)
    with locks.held(lock):
        if database is not None:
            _prepare_sqlite(database, uri)
        client = _connect(uri)
        artifacts = None if is_server(uri) else results_dir / "artifacts"
        experiment_id, store_id, location = _open_experiment(client, experiment, artifacts)
        results_id = _results_id(results_dir)
    if artifacts is not None and location != artifacts.as_uri():
        artifacts = Path(_unquote(location)) if location.startswith("file:") else None
    return Store(client, uri, store_id, experiment_id, results_dir, results_id, artifacts)


def sqlite_path(uri: str) -> Path | None:
    """The database file of an SQLite URI, None for any other."""
    scheme, _, rest = uri.partition("://")
    if scheme.partition("+")[0] != "sqlite":
        return None
    return Path(rest.partition("?")[0].removeprefix("/"))


def _sqlite_uri(path: Path) -> str:
    if "?" in str(path):
        raise ConfigError(
            [Mistake("results_dir", f"{str(path)!r} has a '?', which an SQLite address can't hold")]
        )
    return f"sqlite:///{path}"


def _server_uri(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port  # reading the port raises where it is no number
    except ValueError as error:
        raise _mistake(f"{uri!r}: {error}") from None
    if not host:
        raise _mistake(f"{uri!r} names no host")
    return uri.partition("#")[0].rstrip("/")


def _mistake(problem: str, suggestion: str = "") -> ConfigError:
    return ConfigError([Mistake("tracking.uri", problem, allowed=ALLOWED, suggestion=suggestion)])


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([Mistake("results_dir", f"can't make the folder {str(path)!r}: {error}")]) from None


def _prepare_sqlite(path: Path, uri: str) -> None:
    """Make the database if there is none, and switch on the write-ahead log. Finds at once a path that can't
    be written: MLflow tries for 100 s."""
    try:
        if not path.exists() or _is_empty(path):
            _make_sqlite(path)
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except (OSError, sqlite3.Error) as error:
        raise _mistake(f"can't open {uri!r}: {error}") from None


def _is_empty(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
        return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _make_sqlite(path: Path) -> None:
    """Make the tables in a file beside it, which takes the place of `path` when it has all of them: a kill in
    the middle of MLflow's migrations leaves tables that the next one stumbles over for good. The first such
    file of a version of MLflow is kept in the user's cache, as migrations take a second."""
    _import_mlflow(_sqlite_uri(path))
    import sqlalchemy
    from mlflow.store.db import utils

    template = f"mlflow-{importlib.metadata.version('mlflow')}.db"
    atomic.remove_half_written(path)
    with atomic.replacing(path) as draft:
        draft.touch()  # raises where it can't be written
        try:
            shutil.copyfile(user_cache.folder() / template, draft)
        except OSError:  # there is none, or none that can be read
            engine = sqlalchemy.create_engine(_sqlite_uri(draft), poolclass=sqlalchemy.NullPool)
            utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
            user_cache.keep(template, functools.partial(shutil.copyfile, draft))
        for log in ("-wal", "-shm"):  # of a file without tables; SQLite would take them for the new one's
            path.with_name(path.name + log).unlink(missing_ok=True)


def _import_mlflow(uri: str) -> None:
    """Import what is needed of MLflow, and of the database's library where there is one; it takes seconds."""
    with fast_imports.quick(without=NOT_NEEDED):
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
        raise Unreachable(f"{_hide_password(uri)} does not answer: {_first_line(error)}") from error
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise _mistake(f"can't open {_hide_password(uri)!r}: {_first_line(error)}") from error
    return client


def _open_experiment(client: MlflowClient, name: str, artifacts: Path | None) -> tuple[str, str, str]:
    """Find or create the experiment; its id, the store's own id, and where its artifacts lie."""
    from mlflow.exceptions import MlflowException

    tags = {STORE_TAG: uuid.uuid4().hex, KIND_TAG: "custom_model_development", **view_tags()}
    try:
        found = client.get_experiment_by_name(name)
        if found is None:
            location = None if artifacts is None else artifacts.as_uri()
            try:
                client.create_experiment(name, artifact_location=location, tags=tags)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another machine was faster
                    raise
            found = client.get_experiment_by_name(name)
            assert found is not None
        if found.lifecycle_stage != "active":
            client.restore_experiment(found.experiment_id)
        for key, value in tags.items():
            if key not in found.tags:  # a view that a user changed is kept
                client.set_experiment_tag(found.experiment_id, key, value)
    except MlflowException as error:
        raise Unreachable(_first_line(error)) from error
    return found.experiment_id, found.tags.get(STORE_TAG, tags[STORE_TAG]), found.artifact_location


def _results_id(results_dir: Path) -> str:
    """What tells this results folder's runs from those of others in a shared store."""
    path = results_dir / ".results-id"
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(uuid.uuid4().hex + "\n")
        # link() fails where the name exists: of two processes that got here at once, one id stays.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
    return path.read_text().strip()


def _hide_password(uri: str) -> str:
    parts = urlsplit(uri)
    return uri if not parts.password else uri.replace(f":{parts.password}@", ":***@", 1)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else type(error).__name__


def _unquote(uri: str) -> str:
    from urllib.parse import unquote

    return unquote(urlsplit(uri).path)
