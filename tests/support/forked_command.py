"""Run the command in a fork of a process that has already imported its libraries.

A test's command takes about a second of work, and two more to import MLflow and Hydra. So a server, one for
each pytest process, imports them once and forks for each command. The fork is an ordinary process: it has its
own working folder, environment, streams, process group and exit status, runs `python -m harness` as
`__main__`, and starts its workers with `exec`. It cannot show whether the imports themselves work: the
commands of tests/shell/test_cli.py, tests/system/test_agreement.py, tests/system/test_oracles.py and
tests/project/test_wheel.py start as new processes.

In /proc a fork has the environment of its server, so processes cannot be recognised as commands by their
environment, only by their process ids.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

IMPORTED = (
    "alembic.command",
    "harness.shell.reports.leaderboard",
    "harness.shell.session.session",
    "harness.shell.compose.hydra",
    "harness.shell.tracking.store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "sqlalchemy.dialects.sqlite",
)
"""Modules that import nearly everything that a run or a sweep needs, and no framework."""
COMMAND_VARIABLES = ("FAULTS", "PYTHONPATH")
"""Variables that the server must not inherit from a test that starts it; each command gets its own."""


class Command:
    """A running command with the interface of a `subprocess.Popen` whose standard output and error are one
    pipe of text."""

    def __init__(self, server: _Server, pid: int, output: int, arguments: Sequence[str]) -> None:
        """`output`: a file descriptor with its output, which the command owns from now on."""
        self.pid, self.args = pid, list(arguments)
        self.returncode: int | None = None
        self._server = server
        self._ended = os.pidfd_open(pid)  # refers to this process, as the server has not reaped it
        self._output: int | None = output
        self._printed = b""

    def poll(self) -> int | None:
        """The exit status, or the negative number of a signal; None while the command runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status; raise subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = self._server.status(self.pid)
            os.close(self._ended)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait until the command and all writers of its output have ended; return the output. Raises as
        `wait`."""
        deadline = time.monotonic() + (timeout or float("inf"))
        while self._output is not None:
            remaining_s = max(0.0, deadline - time.monotonic())
            if not select.select([self._output], [], [], None if timeout is None else remaining_s)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            part = os.read(self._output, 1 << 16)
            self._printed += part
            if not part:
                os.close(self._output)
                self._output = None
        self.wait(None if timeout is None else max(0.0, deadline - time.monotonic()))
        return self._printed.decode().replace("\r\n", "\n"), None

    def send_signal(self, number: int) -> None:
        """Signal the process, but not its children, unless it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._ended, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def start(arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Command:
    """Start `python -m harness ARGUMENTS` in its own process group, without standard input."""
    return _server().start(arguments, cwd, env)


@functools.cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server


class _Server:
    """The process that forks. It serves one request at a time and ends with this process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forked_command", str(theirs.fileno())],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name not in COMMAND_VARIABLES},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._socket = ours

    def start(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Command:
        """Fork for a command."""
        reading, writing = os.pipe()
        try:
            request = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}
            pid = self._request(request, [writing])
        finally:
            os.close(writing)
        return Command(self, pid, reading, arguments)

    def status(self, pid: int) -> int:
        """The exit status of a command that has ended."""
        return self._request({"ended": pid})

    def close(self) -> None:
        """End the server; its commands keep running."""
        self._socket.close()
        self._process.wait()

    def _request(self, request: dict[str, Any], files: Sequence[int] = ()) -> int:
        socket.send_fds(self._socket, [json.dumps(request).encode()], list(files))
        reply = self._socket.recv(1 << 10)
        assert reply, "the server of forked commands has ended"
        return int(reply)


def _serve(number: int) -> dict[str, Any] | None:
    """Serve requests until the client closes the connection. Returns once in the server, with None, and once
    in each fork, with its request."""
    with socket.socket(fileno=number) as client:
        while True:
            message, files, *_ = socket.recv_fds(client, 1 << 20, 1)
            if not message:
                return None
            request: dict[str, Any] = json.loads(message)
            if "ended" in request:
                reply = os.waitstatus_to_exitcode(os.waitpid(request["ended"], 0)[1])
            else:
                reply = os.fork()
                if not reply:
                    os.setpgid(0, 0)
                    for stream in (1, 2):
                        os.dup2(files[0], stream)
                    os.close(files[0])
                    return request
                os.setpgid(reply, reply)
                os.close(files[0])
            client.send(str(reply).encode())


def _become(request: dict[str, Any], original: Mapping[str, str]) -> None:
    """Adopt the working folder, the environment and the path that `python -m harness` would have.

    `original`: the environment before the imports, which may have added variables.
    """
    added = {name: value for name, value in os.environ.items() if name not in original}
    os.environ.clear()
    os.environ.update(added | request["env"])
    os.chdir(request["cwd"])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [request["cwd"], *filter(None, paths), *sys.path[1:]]
    sys.argv = ["harness", *request["arguments"]]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = dict(os.environ)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that the collector does not touch, and thereby copy, shared pages in forks
    if command_request := _serve(int(sys.argv[1])):
        _become(command_request, environment)
        runpy.run_module("harness", run_name="__main__", alter_sys=True)
