"""A worker seen from the shell: start it, hand it a run, hear its events, and know how it died.

The environment that frameworks read at import (threads, precision, devices) is set here, before the child
exists. A thread a worker turns its lines into a queue, so the shell sleeps until something happens and never
eats the processor that is being measured. A worker leads a process group of its own: Ctrl-C reaches the shell
alone, and what a framework forked goes when its worker goes.
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

START = Path(__file__).resolve().parents[2] / "worker" / "bootstrap.py"
START_TIMEOUT_S = 300.0
GAUGE_TIMEOUT_S = 120.0
CALIBRATE_TIMEOUT_S = 900.0  # a compiler may take minutes
CLOSE_TIMEOUT_S = 2.0
# These come from outside: a person, a batch system, the kernel when memory runs out.
OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended, and what to tell people."""

    status: Status
    type: str
    message: str
    log_tail: str = ""


class WorkerDiedError(Exception):
    """The worker is gone, or was made to go because it hung."""

    def __init__(self, death: WorkerExit) -> None:
        super().__init__(death.message)
        self.death = death


class Worker:
    """One child process. `start` returns at once; the import goes on beside whatever the shell does.

    `cores` pins it, and whatever threads it will have, to these. One thread at a time may use a worker, but
    any may `kill` it.
    """

    def __init__(self, key: WorkerKey, cores: Sequence[int] = ()) -> None:
        self.key = key
        self.ready = False
        self._death: WorkerExit | None = None
        # has no name, so nothing is left behind, whoever is killed
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        options = {
            "backend": key.backend,
            "precision": key.precision,
            "threads": key.threads,
            "device": key.device.partition(":")[0],  # it sees one card
        }
        asked = {"adapter": key.adapter, "options": options, "cores": list(cores)}
        # -P: the folder of the script must not get onto the path of modules
        self._process = subprocess.Popen(
            [key.python, "-P", str(START), json.dumps(asked)],
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
        """Whether the process is there; asked of the system, as the watcher takes a while to hear of it."""
        with self._reaping:
            if self._process.returncode is not None:
                return False
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    def wait_ready(self) -> None:
        """Wait until its framework is imported; raises WorkerDiedError, each time it is asked."""
        if self.ready:
            return
        limit = f"{self.key.adapter} was not imported within {START_TIMEOUT_S:g} s"
        event = self._next(time.monotonic() + START_TIMEOUT_S, limit)
        if event["event"] == "broken":
            message = f"{self.key.adapter} can't start: {event['message']}"
            raise self._died(WorkerExit("failed", event["type"], message, last_lines(self._log)))
        self.ready = True

    def run(
        self, folder: Path, again: bool, timeout_s: float | None, judged: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Do the run of a folder (`again`: even if it is finished) and yield its events.

        `judged`: the worker waits after each `epoch` event for `judge`. The time starts when the run does,
        not while another sweep holds the folder. Raises WorkerDiedError.
        """
        self.wait_ready()
        self._send({"task": "run", "folder": str(folder.resolve()), "again": again, "judged": judged})
        deadline: float | None = None
        limit = "" if timeout_s is None else f"the run took longer than timeout_s={timeout_s:g}"
        while True:
            event = self._next(deadline, limit)
            if event["event"] == "ended":
                return
            if event["event"] == "started" and timeout_s is not None:
                deadline = time.monotonic() + timeout_s
            yield event

    def judge(self, go: bool) -> None:
        """Let the run in progress go on after an epoch, or end it; raises WorkerDiedError."""
        self._send({"task": "go" if go else "stop"})

    def trace(self, command: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Have the cases of a certificate trained (see `harness/worker/trace.py`); yields an event for each.

        Raises WorkerDiedError.
        """
        self.wait_ready()
        self._send({"task": "trace", **command})
        while (event := self._next(None, ""))["event"] != "ended":
            yield event

    def export(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Have a run's network written as a model (see `harness/worker/export.py`) and hear how that went.

        Raises WorkerDiedError.
        """
        return self._ask({"task": "export", **command}, None)

    def gauge(self, limit: bool = False, noise: bool = False) -> dict[str, Any]:
        """What the worker says of itself, with these measures on request (see `harness/worker/probe.py`).

        Raises WorkerDiedError.
        """
        return self._ask({"task": "gauge", "limit": limit, "noise": noise}, GAUGE_TIMEOUT_S)

    def calibrate(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Have executions timed (see `harness/worker/autotune.py`); raises WorkerDiedError."""
        return self._ask({"task": "calibrate", **command}, CALIBRATE_TIMEOUT_S)

    def close(self, kill: bool = False) -> None:
        """End the process, gently if it is idle, and wait for it."""
        assert self._process.stdin is not None
        if kill:
            self.kill()
        with contextlib.suppress(BrokenPipeError):  # it is dead, and did not read its last command
            self._process.stdin.close()
        self._watcher.join(CLOSE_TIMEOUT_S)
        self.kill()
        self._log.close()

    def kill(self) -> None:
        """End the process at once; whoever waits for its events finds it dead, and closes it."""
        with self._reaping:  # once it is reaped, its number may be another's
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                self._watcher.join()
                self._process.wait()

    def _watch(self) -> None:
        """Wait for its death and end what it forked, which keeps the pipe open, while its number is taken."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # half a line is left by a kill; its interpreter may have printed before we took the pipe away
            with contextlib.suppress(ValueError):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def _send(self, command: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died(self._last_words()) from None

    def _ask(self, command: Mapping[str, Any], timeout_s: float | None) -> dict[str, Any]:
        """Have a task done, and hear what is said of it last."""
        self.wait_ready()
        self._send(command)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        slow = "" if timeout_s is None else f"no answer within {timeout_s:g} s"
        said: dict[str, Any] = {}
        while (event := self._next(deadline, slow))["event"] != "ended":
            said = event
        return said

    def _next(self, deadline: float | None, limit: str) -> dict[str, Any]:
        """The next event; `limit` says what was too slow if none comes before the deadline."""
        if self._death is not None:
            raise WorkerDiedError(self._death)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            event = self._lines.get(timeout=left)
        except queue.Empty:
            os.kill(self.pid, signal.SIGABRT)  # makes it write down where it hangs
            self._watcher.join(CLOSE_TIMEOUT_S)
            self.kill()
            raise self._died(WorkerExit("timeout", "timeout", limit, last_lines(self._log))) from None
        if event is None:
            raise self._died(self._last_words())
        return event

    def _died(self, death: WorkerExit) -> WorkerDiedError:
        self._death = death
        return WorkerDiedError(death)

    def _last_words(self) -> WorkerExit:
        """What a process that ended by itself, or by a signal, has to say."""
        self._watcher.join()
        with self._reaping:
            code = self._process.wait()
        log_tail = last_lines(self._log)
        when = "in the middle of the run" if self.ready else f"while it imported {self.key.adapter}"
        if code >= 0:
            return WorkerExit("failed", "exit", f"the worker exited with status {code} {when}", log_tail)
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        message = f"the worker was ended by {name} {when}{hint}"
        return WorkerExit("killed" if -code in OUTSIDE else "failed", name, message, log_tail)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid
