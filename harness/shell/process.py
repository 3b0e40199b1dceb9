"""A worker seen from the shell: start it, hand it a run, hear its events, and know how it died.

The environment that frameworks read at import (threads, precision, devices) is set here, before the child
exists. A thread a worker turns its lines into a queue, so the shell sleeps until something happens and never
eats the processor that is being measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import FrameworkConfig, RunConfig
from harness.job import Status

START = Path(__file__).resolve().parents[1] / "worker" / "start.py"
START_TIMEOUT_S = 300.0

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "NPROC",  # sizes XLA's pool on the CPU
)


@dataclass(frozen=True)
class WorkerKey:
    """What is fixed for a worker's life; runs with equal keys can share one."""

    framework: str
    adapter: str
    backend: str
    python: str
    env: tuple[tuple[str, str], ...]
    precision: str
    threads: int
    device: str

    @classmethod
    def of(cls, config: RunConfig) -> WorkerKey:
        """The worker that a run needs."""
        framework = config.framework
        return cls(
            framework.name,
            framework.adapter,
            framework.backend,
            interpreter(framework),
            tuple(sorted((k, str(v)) for k, v in framework.env.items())),
            config.precision,
            config.threads,
            config.device,
        )

    def environment(self) -> dict[str, str]:
        """The child's environment variables."""
        threads = {name: str(self.threads) for name in THREAD_VARIABLES}
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
        wide = {"JAX_ENABLE_X64": "1"} if self.precision == "float64" else {}
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        return {**os.environ, **quiet, **threads, **wide, **hidden, **dict(self.env)}


def interpreter(framework: FrameworkConfig) -> str:
    """The Python that a framework's workers run in: `framework.python`, or the shell's own."""
    return framework.python or sys.executable


@dataclass(frozen=True)
class Death:
    """How a worker ended, and what to tell people."""

    status: Status
    type: str
    message: str
    log_tail: str = ""


class WorkerDiedError(Exception):
    """The worker is gone, or was made to go because it hung."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.message)
        self.death = death


class Worker:
    """One child process. `start` returns at once; the import goes on beside whatever the shell does."""

    def __init__(self, key: WorkerKey) -> None:
        self.key = key
        descriptor, name = tempfile.mkstemp(prefix="evenbench-worker-", suffix=".log")
        os.close(descriptor)
        self._log = Path(name)
        options = {
            "backend": key.backend,
            "precision": key.precision,
            "threads": key.threads,
            "device": key.device,
        }
        asked = json.dumps({"adapter": key.adapter, "options": options, "log": name})
        # -P: the folder of the script must not get onto the path of modules
        self._process = subprocess.Popen(
            [key.python, "-P", str(START), asked],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("ab"),
            env=key.environment(),
            text=True,
        )
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._ready = False

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until its framework is imported; raises WorkerDiedError."""
        if self._ready:
            return
        event = self._next(START_TIMEOUT_S, "importing its framework")
        if event.get("event") == "broken":
            message = f"{self.key.adapter} can't start: {event['message']}"
            raise WorkerDiedError(Death("failed", event["type"], message, self._log_tail()))
        self._ready = True

    def run(self, folder: Path, again: bool, timeout_s: float | None) -> Iterator[dict[str, Any]]:
        """Do the run of a folder (`again`: even if it is finished) and yield its events.

        Raises WorkerDiedError.
        """
        self.wait_ready()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._send({"folder": str(folder.resolve()), "again": again})
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            event = self._next(left, f"running for {timeout_s:g} s" if timeout_s else "running")
            if event["event"] == "ended":
                return
            yield event

    def close(self, kill: bool = False) -> None:
        """End the process, gently if it is idle, and wait for it."""
        if self._process.poll() is None and not kill:
            assert self._process.stdin is not None
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2.0)
        self._kill()
        self._log.unlink(missing_ok=True)

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _log_tail(self, lines: int = 20) -> str:
        """The end of what it printed before its first run."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _send(self, command: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDiedError(self._death()) from None

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def _next(self, timeout_s: float | None, what: str) -> dict[str, Any]:
        try:
            event = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self._kill()
            message = f"the worker was ended: it did not get through {what} in time"
            raise WorkerDiedError(Death("timeout", "timeout", message)) from None
        if event is None:
            raise WorkerDiedError(self._death())
        return event

    def _death(self) -> Death:
        code = self._process.wait()
        if code >= 0:
            message = f"the worker exited with status {code} in the middle of the run"
            return Death("failed", "exit", message, self._log_tail())
        name = signal.Signals(-code).name
        # these two come from outside: a person, a batch system, the kernel when memory runs out
        outside = -code in (signal.SIGKILL, signal.SIGTERM)
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        message = f"the worker was ended by signal {name}{hint}"
        return Death("killed" if outside else "failed", name, message, self._log_tail())
