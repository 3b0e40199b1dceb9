"""The command in a process that need not import anything: a fork of one that has imported all of it.

What a test asks of `evenbench` takes a second of work, and importing MLflow and Hydra for it two more. So a
server, one for each pytest process, imports them once and forks for each command. The fork is a process as
any other: it has its own working folder, environment, streams, process group and exit status, runs `python -m
harness` as `__main__`, and starts its workers with `exec`. What it cannot show is whether the imports
themselves go well: the commands of tests/shell/test_cli.py, tests/system/test_agreement.py,
tests/system/test_oracles.py and tests/project/test_wheel.py begin from nothing.

In /proc a fork has the environment that its server was started with: who looks for processes by that has to
know the commands by their ids.
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
"""What brings with it nearly all that a run or a sweep imports; nothing of a framework."""
OF_A_COMMAND = ("FAULTS", "PYTHONPATH")
"""What a test may have set already when it asks for the first command; each command is given its own."""


class Command:
    """A command that runs. It can be asked and told what a `subprocess.Popen` can whose standard output and
    error are one pipe of text."""

    def __init__(self, server: _Server, pid: int, output: int, arguments: Sequence[str]) -> None:
        """`output`: a file descriptor to read what it prints from, which is then the command's."""
        self.pid, self.args = pid, list(arguments)
        self.returncode: int | None = None
        self._server = server
        self._ended = os.pidfd_open(pid)  # of this process and no other, as the server has not waited for it
        self._output: int | None = output
        self._printed = b""

    def poll(self) -> int | None:
        """The exit status, or the negative number of a signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The same at its end; raises subprocess.TimeoutExpired if it runs for so many more seconds."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = self._server.status(self.pid)
            os.close(self._ended)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it printed, once it has ended and nothing it started can print any more; raises as `wait`."""
        deadline = time.monotonic() + (timeout or float("inf"))
        while self._output is not None:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._output], [], [], None if timeout is None else left)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            part = os.read(self._output, 1 << 16)
            self._printed += part
            if not part:
                os.close(self._output)
                self._output = None
        self.wait(None if timeout is None else max(0.0, deadline - time.monotonic()))
        return self._printed.decode().replace("\r\n", "\n"), None

    def send_signal(self, number: int) -> None:
        """Signal the process, and none that it started, unless it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._ended, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def start(arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Command:
    """`python -m harness ARGUMENTS` in a process group of its own, with nothing to read."""
    return _server().start(arguments, cwd, env)


@functools.cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server


class _Server:
    """The process that forks. It answers one request at a time and goes when this process does."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forked_command", str(theirs.fileno())],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name not in OF_A_COMMAND},
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
            asked = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}
            pid = self._ask(asked, [writing])
        finally:
            os.close(writing)
        return Command(self, pid, reading, arguments)

    def status(self, pid: int) -> int:
        """How a command that has ended, ended."""
        return self._ask({"ended": pid})

    def close(self) -> None:
        """End the server; what it started goes on."""
        self._socket.close()
        self._process.wait()

    def _ask(self, asked: dict[str, Any], files: Sequence[int] = ()) -> int:
        socket.send_fds(self._socket, [json.dumps(asked).encode()], list(files))
        answer = self._socket.recv(1 << 10)
        assert answer, "the server of forked commands has ended"
        return int(answer)


def _serve(number: int) -> dict[str, Any] | None:
    """Answer requests until nobody is there to ask. Returns twice and more: in each fork with what was asked
    of it, in the server with None."""
    with socket.socket(fileno=number) as asking:
        while True:
            message, files, *_ = socket.recv_fds(asking, 1 << 20, 1)
            if not message:
                return None
            asked: dict[str, Any] = json.loads(message)
            if "ended" in asked:
                answer = os.waitstatus_to_exitcode(os.waitpid(asked["ended"], 0)[1])
            else:
                answer = os.fork()
                if not answer:
                    os.setpgid(0, 0)
                    for stream in (1, 2):
                        os.dup2(files[0], stream)
                    os.close(files[0])
                    return asked
                os.setpgid(answer, answer)
                os.close(files[0])
            asking.send(str(answer).encode())


def _become(asked: dict[str, Any], ours: Mapping[str, str]) -> None:
    """Take over the working folder, the environment and the path that `python -m harness` would have there.

    `ours`: what the environment was before the imports, which may have added to it.
    """
    added = {name: value for name, value in os.environ.items() if name not in ours}
    os.environ.clear()
    os.environ.update(added | asked["env"])
    os.chdir(asked["cwd"])
    wanted = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [asked["cwd"], *filter(None, wanted), *sys.path[1:]]
    sys.argv = ["harness", *asked["arguments"]]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = dict(os.environ)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no fork copies pages because the collector has looked at what is in them
    if given := _serve(int(sys.argv[1])):
        _become(given, before)
        runpy.run_module("harness", run_name="__main__", alter_sys=True)
