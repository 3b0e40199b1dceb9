"""Tracking URIs: where MLflow keeps runs. SQLite in the results folder by default.

Importing MLflow takes seconds, so a user's mistakes are found here, without it.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from harness.core.validation import ConfigError, Mistake, nearest

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https")
ALLOWED = (
    "sqlite:////absolute/path.db, http://host:port, https://host, "
    "postgresql://user:password@host/name, mysql://..., mssql://..."
)


def resolve_uri(results_dir: Path, uri: str | None) -> str:
    """Return the absolute tracking URI; None and blank mean the default. Raises ConfigError."""
    if uri is None or not uri.strip():
        return sqlite_uri(results_dir.absolute() / "mlflow.db")
    uri = uri.strip()
    scheme, separator, rest = uri.partition("://")
    dialect = scheme.partition("+")[0].lower()
    if not separator or dialect == "file":
        path = Path(urlsplit(uri).path or uri).absolute()
        path = path if path.suffix else path / "mlflow.db"
        raise uri_error(f"{uri!r} is a path; MLflow no longer stores runs in plain folders", sqlite_uri(path))
    if dialect in SERVERS:
        return _server_uri(uri)
    if dialect not in DATABASES:
        nearest_scheme = nearest(dialect, DATABASES + SERVERS)
        suggestion = f"{nearest_scheme}://{rest}" if nearest_scheme else ""
        raise uri_error(f"{scheme!r} in {uri!r} is not a known kind of store", suggestion)
    if dialect != "sqlite":
        return uri
    path_text = rest.partition("?")[0].removeprefix("/")
    if not path_text or ":memory:" in path_text:
        raise uri_error(f"{uri!r} names no file, and a store in memory is lost with its process")
    return sqlite_uri(Path(path_text).absolute())


def is_server(uri: str) -> bool:
    """Whether the URI is of a tracking server rather than a database."""
    return urlsplit(uri).scheme in SERVERS


def sqlite_path(uri: str) -> Path | None:
    """Return the database file of an SQLite URI, None for any other URI."""
    scheme, _, rest = uri.partition("://")
    if scheme.partition("+")[0] != "sqlite":
        return None
    return Path(rest.partition("?")[0].removeprefix("/"))


def sqlite_uri(path: Path) -> str:
    """Return the tracking URI of a database file. Raises ConfigError for a path with a `?`."""
    if "?" in str(path):
        raise ConfigError(
            [Mistake("results_dir", f"{str(path)!r} has a '?', which an SQLite URI can't contain")]
        )
    return f"sqlite:///{path}"


def hide_password(uri: str) -> str:
    """Replace the password in a URI, for messages."""
    parts = urlsplit(uri)
    return uri if not parts.password else uri.replace(f":{parts.password}@", ":***@", 1)


def uri_error(problem: str, suggestion: str = "") -> ConfigError:
    """Build the error for a mistake in `tracking.uri`."""
    return ConfigError([Mistake("tracking.uri", problem, allowed=ALLOWED, suggestion=suggestion)])


def _server_uri(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port  # reading the port raises if it is not a number
    except ValueError as error:
        raise uri_error(f"{uri!r}: {error}") from None
    if not host:
        raise uri_error(f"{uri!r} has no host")
    return uri.partition("#")[0].rstrip("/")
