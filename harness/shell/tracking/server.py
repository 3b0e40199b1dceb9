"""`evenbench ui`: serve the MLflow UI on the store, print the URLs of the ready-made views, shut down
cleanly.

By default `mlflow server` uses fifteen processes and 2.6 GB; with one worker and without its job runner it
uses two and 0.5 GB. It runs in its own process group, so that Ctrl-C and SIGTERM stop all of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from pathlib import Path

from harness.core.validation import ConfigError, Mistake
from harness.shell.tracking.store import Store, open_store
from harness.shell.tracking.views import VIEWS, runs_url

FIRST_PORT = 5000
PORTS_TRIED = 50
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 5.0
TAIL_LINES = 15  # of the server's log


class StopRequested(Exception):
    """The process received SIGINT or SIGTERM."""


def run_ui(
    results_dir: Path,
    uri: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
) -> int:
    """Serve the UI until Ctrl-C or SIGTERM, and return the exit status.

    For a tracking server, which has its own UI, only print the URLs. `port`: None means the first free one
    from
    5000. Raises ConfigError for a port in use and for a URI that can't be opened.
    """
    store = open_store(results_dir, uri)
    if store.remote:
        _announce(store.uri, store.experiment_id, open_browser)
        return 0
    if port is None:
        port = free_port(host)
        if port != FIRST_PORT:
            print(f"Port {FIRST_PORT} is in use; using {port}.")
    elif not _is_free(host, port):
        free = str(free_port(host, port + 1))
        raise ConfigError([Mistake("port", f"{port} on {host} is in use", "a free port", suggestion=free)])
    with _stop_on_signals(), contextlib.suppress(StopRequested), _server(store, host, port) as (process, log):
        base = f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else host}:{port}"
        if not _wait_until_up(process, base):
            print(f"The MLflow server did not start. The end of {log}:\n{_tail(log)}")
            return 1
        _announce(base, store.experiment_id, open_browser)
        print("Press Ctrl-C to stop.")
        code = process.wait()
        print(f"The MLflow server ended with status {code}. The end of {log}:\n{_tail(log)}")
        return 1
    return 0


def free_port(host: str = "127.0.0.1", first: int = FIRST_PORT) -> int:
    """Return the first free port from `first`; raises ConfigError if the next fifty are in use."""
    for port in range(first, min(first + PORTS_TRIED, 65536)):
        if _is_free(host, port):
            return port
    raise ConfigError([Mistake("port", f"the {PORTS_TRIED} ports from {first} are in use", "a free port")])


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        # as the server does, else a port that was in use a moment ago counts as taken
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise ConfigError([Mistake("host", f"{host!r}: {error.strerror}")]) from None
        except OSError:
            return False
    return True


def _announce(base: str, experiment_id: str, open_browser: bool) -> None:
    for view in VIEWS:
        print(f"{view.name:12} {runs_url(base, experiment_id, view)}")
    if open_browser:
        webbrowser.open(runs_url(base, experiment_id))


@contextlib.contextmanager
def _server(store: Store, host: str, port: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start the server with its output in a log file; on exit, stop its whole process group."""
    log = store.results_dir / "mlflow-server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri, "--workers", "1"]
    command += ["--host", host, "--port", str(port)]
    command += ["--default-artifact-root", (store.artifacts or store.results_dir / "artifacts").as_uri()]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process, log
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the group, then SIGKILL to the processes that remain."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # no process is left
            break
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline and _group_lives(process):
            time.sleep(0.05)
    process.wait()


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the leader, which otherwise counts as alive
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until_up(process: subprocess.Popen[bytes], base: str) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with direct.open(f"{base}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Raise `StopRequested` for the first SIGINT or SIGTERM; ignore later ones, so that cleaning up
    completes."""
    stopping = False

    def stop(number: int, frame: types.FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise StopRequested

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-TAIL_LINES:])
