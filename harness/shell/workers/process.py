"""A worker process as the shell sees it: start it, send it tasks, read its events, report how it ended.

The environment variables that frameworks read at import (threads, precision, devices) are set before the
process starts. One thread per worker puts its output lines into a queue, so the shell sleeps until an event
arrives and takes no processor time from what is being measured. Each worker leads its own process group:
Ctrl-C reaches the shell only, and processes that a framework forked end with their worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.runs.run_folder import Status, last_lines
from harness.shell.workers.key import WorkerKey

BOOTSTRAP = Path(__file__).resolve().parents[2] / "worker" / "bootstrap.py"
START_TIMEOUT_S = 300.0
PROBE_TIMEOUT_S = 120.0
AUTOTUNE_TIMEOUT_S = 900.0  # a compiler may need minutes
CLOSE_TIMEOUT_S = 2.0
# Signals sent from outside: by a user, a batch system, or the kernel when memory runs out.
EXTERNAL_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended: the status of its run, the type of error, and a message for the user."""

    status: Status
    type: str
    message: str
    log_tail: str = ""


class WorkerDiedError(Exception):
    """The worker has ended, or was killed because it did not respond."""

    def __init__(self, exit: WorkerExit) -> None:
        super().__init__(exit.message)
        self.exit = exit


class Worker:
    """One child process. The constructor returns at once; the worker imports its framework in parallel.

    `cores` pins the process and all its threads. Only one thread at a time may use a worker, but any thread
    may `kill` it.
    """

    def __init__(self, key: WorkerKey, cores: Sequence[int] = ()) -> None:
        self.key = key
        self.ready = False
        self._exit: WorkerExit | None = None
        # the file has no name, so it disappears whichever process is killed
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        options = {
            "backend": key.backend,
            "precision": key.precision,
            "threads": key.threads,
            "device": key.device.partition(":")[0],  # the worker sees a single card
        }
        arguments = {"adapter": key.adapter, "options": options, "cores": list(cores)}
        # -P keeps the script's folder off the module path
        self._process = subprocess.Popen(
            [key.python, "-P", str(BOOTSTRAP), json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=key.environment(),
            text=True,
            process_group=0,
        )
        self._reaping = threading.Lock()
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether the process is running, according to the system (the watcher thread lags behind)."""
        with self._reaping:
            if self._process.returncode is not None:
                return False
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    def wait_ready(self) -> None:
        """Wait until the framework is imported; raises WorkerDiedError, also on later calls."""
        if self.ready:
            return
        timeout_message = f"{self.key.adapter} was not imported within {START_TIMEOUT_S:g} s"
        event = self._next(time.monotonic() + START_TIMEOUT_S, timeout_message)
        if event["event"] == "broken":
            message = f"{self.key.adapter} can't start: {event['message']}"
            raise self._died_error(WorkerExit("failed", event["type"], message, self._log_tail()))
        self.ready = True

    def run(
        self, folder: Path, force: bool, timeout_s: float | None, prunable: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Execute the run of a folder and yield its events; `force` repeats a run that has finished.

        A `prunable` run waits after each `epoch` event for `continue_or_stop`. The timeout counts from the
        start of the run and excludes waiting for another sweep that holds the folder. Raises
        WorkerDiedError.
        """
        self.wait_ready()
        self._send({"task": "run", "folder": str(folder.resolve()), "force": force, "prunable": prunable})
        deadline: float | None = None
        timeout_message = "" if timeout_s is None else f"the run took longer than timeout_s={timeout_s:g}"
        while True:
            event = self._next(deadline, timeout_message)
            if event["event"] == "ended":
                return
            if event["event"] == "started" and timeout_s is not None:
                deadline = time.monotonic() + timeout_s
            yield event

    def continue_or_stop(self, should_continue: bool) -> None:
        """Answer the last `epoch` event of a prunable run; raises WorkerDiedError."""
        self._send({"task": "continue" if should_continue else "stop"})

    def trace(self, command: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Train the cases of a certificate (see `harness/worker/trace.py`); yields an event for each.

        Raises WorkerDiedError.
        """
        self.wait_ready()
        self._send({"task": "trace", **command})
        while (event := self._next(None, ""))["event"] != "ended":
            yield event

    def export(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Write a run's network as a model (see `harness/worker/export.py`); returns the closing event.

        Raises WorkerDiedError.
        """
        return self._request({"task": "export", **command}, None)

    def probe(self, limit: bool = False, noise: bool = False) -> dict[str, Any]:
        """Describe the worker and optionally measure its matrix limit and noise (`harness/worker/probe.py`).

        Raises WorkerDiedError.
        """
        return self._request({"task": "probe", "limit": limit, "noise": noise}, PROBE_TIMEOUT_S)

    def autotune(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Time executions (see `harness/worker/autotune.py`); raises WorkerDiedError."""
        return self._request({"task": "autotune", **command}, AUTOTUNE_TIMEOUT_S)

    def close(self, kill: bool = False) -> None:
        """End the process and wait for it; `kill` skips the request to end by itself."""
        assert self._process.stdin is not None
        if kill:
            self.kill()
        with contextlib.suppress(BrokenPipeError):  # the process ended without reading its last command
            self._process.stdin.close()
        self._watcher.join(CLOSE_TIMEOUT_S)
        self.kill()
        self._log.close()

    def kill(self) -> None:
        """End the process at once; a thread that waits for its events gets WorkerDiedError."""
        with self._reaping:  # after reaping, the process id may belong to another process
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                self._watcher.join()
                self._process.wait()

    def _watch(self) -> None:
        """Wait for the process to end, then kill what it forked, which would keep the pipe open.

        The process is not reaped yet, so its group id cannot belong to another process.
        """
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # a kill may leave half a line, and the interpreter may print before the worker moves the pipe
            with contextlib.suppress(ValueError):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def _send(self, command: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died_error(self._exit_of_process()) from None

    def _request(self, command: Mapping[str, Any], timeout_s: float | None) -> dict[str, Any]:
        """Send a task and return its last event before `ended`."""
        self.wait_ready()
        self._send(command)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        timeout_message = "" if timeout_s is None else f"no answer within {timeout_s:g} s"
        reply: dict[str, Any] = {}
        while (event := self._next(deadline, timeout_message))["event"] != "ended":
            reply = event
        return reply

    def _next(self, deadline: float | None, timeout_message: str) -> dict[str, Any]:
        """The next event; a worker that misses the deadline is killed, with `timeout_message` as reason."""
        if self._exit is not None:
            raise WorkerDiedError(self._exit)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            event = self._lines.get(timeout=left)
        except queue.Empty:
            os.kill(self.pid, signal.SIGABRT)  # makes faulthandler write the stack to the log
            self._watcher.join(CLOSE_TIMEOUT_S)
            self.kill()
            timeout = WorkerExit("timeout", "timeout", timeout_message, self._log_tail())
            raise self._died_error(timeout) from None
        if event is None:
            raise self._died_error(self._exit_of_process())
        return event

    def _died_error(self, exit: WorkerExit) -> WorkerDiedError:
        self._exit = exit
        return WorkerDiedError(exit)

    def _exit_of_process(self) -> WorkerExit:
        """Describe a process that ended by itself or by a signal."""
        self._watcher.join()
        with self._reaping:
            code = self._process.wait()
        log_tail = self._log_tail()
        when = "in the middle of the run" if self.ready else f"while it imported {self.key.adapter}"
        if code >= 0:
            return WorkerExit("failed", "exit", f"the worker exited with status {code} {when}", log_tail)
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        message = f"the worker was ended by {name} {when}{hint}"
        return WorkerExit("killed" if -code in EXTERNAL_SIGNALS else "failed", name, message, log_tail)

    def _log_tail(self) -> str:
        """The last lines of the log; empty if another thread has closed the worker."""
        with contextlib.suppress(ValueError):
            return last_lines(self._log)
        return ""

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid
