"""A Slurm job as a remote slot, seen from the parent."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.core.storage.atomic import atomic_write
from harness.shell.engines.cluster.mailbox import POLL_S, Mailbox, SilenceError
from harness.shell.engines.cluster.protocol import SlotLostError
from harness.shell.engines.cluster.slurm_job import FILES, FROM_JOB, TO_JOB
from harness.shell.engines.cluster.slurm_scheduler import SlurmScheduler, last_log_line

SQUEUE_INTERVAL_S = 5.0  # between two queries about a job
END_TIMEOUT_S = 5.0


class SlurmSlot:
    """See `harness.shell.engines.cluster.protocol.RemoteSlot`.

    `jobs_on_host` counts the open slots on a host, this one included.
    """

    def __init__(
        self, scheduler: SlurmScheduler, job: Any, folder: Path, jobs_on_host: Callable[[str], int]
    ) -> None:
        self.name = f"job {job.job_id}"
        self.host = ""
        self.closed = False
        self._scheduler, self._job, self._folder = scheduler, job, folder
        self._jobs_on_host = jobs_on_host
        self._mailbox = Mailbox(folder / FROM_JOB, folder / TO_JOB, None)
        self._last_query = time.monotonic()

    @property
    def concurrent_runs(self) -> int:
        """How many other jobs of this sweep are on the same host now."""
        return self._jobs_on_host(self.host) - 1

    def wait_started(self, give_up: Callable[[], bool], silence_s: float) -> bool:
        """Wait until the job runs; returns False once `give_up` returns true. Raises SlotLostError."""
        while (message := self._receive(wait=False)) is None:
            if give_up():
                return False
            time.sleep(POLL_S)
        self.host = message["host"]
        self.name = f"{message['host']} (job {self._job.job_id})"
        self._mailbox.silence_s = silence_s
        return True

    def warm_up(self, job: Mapping[str, Any]) -> None:
        """See `RemoteSlot`."""
        self._mailbox.send({"task": "warm_up", "job": job})
        self._receive()

    def run(self, request: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[Mapping[str, Any]]:
        """See `RemoteSlot`."""
        for name, path in files.items():
            _share(path, self._folder.parent / FILES / name, overwrite=not name.startswith("data/"))
        self._mailbox.send({"task": "run", "request": request, "files": list(files)})
        while (message := self._receive()) is not None:
            if message["event"] == "file":
                path = self._folder / Path(message["name"]).name
                message["content"] = path.read_bytes()
            yield message

    def continue_or_stop(self, should_continue: bool) -> None:
        """See `RemoteSlot`."""
        self._mailbox.send({"task": "continue_or_stop", "should_continue": should_continue})

    def close(self, kill: bool) -> None:
        """See `RemoteSlot`. A job that does not end by itself is cancelled."""
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(OSError):
            self._mailbox.send({"task": "end"})
        self._mailbox.close()
        deadline = time.monotonic() + (0.0 if kill else END_TIMEOUT_S)
        while not self._scheduler.has_ended(self._job) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self._scheduler.cancel(self._job)

    def _receive(self, wait: bool = True) -> dict[str, Any] | None:
        """The job's next message; with `wait=False` None if there is none yet. Raises SlotLostError."""
        while True:
            if self.closed:
                raise SlotLostError("it was released")
            try:
                message = self._mailbox.receive()
            except SilenceError as error:
                raise SlotLostError(str(error)) from error
            self._check_job()
            if message is not None or not wait:
                return message
            time.sleep(POLL_S)

    def _check_job(self) -> None:
        """Raise SlotLostError if the job has ended; queries Slurm every few seconds only."""
        if time.monotonic() - self._last_query >= SQUEUE_INTERVAL_S:
            self._last_query = time.monotonic()
            if self._scheduler.has_ended(self._job):
                raise SlotLostError(f"its job has ended{last_log_line(self._job)}")


def _share(path: Path, target: Path, overwrite: bool) -> None:
    """Copy a file to where the jobs read it."""
    if overwrite or not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            shutil.copyfile(path, temporary)
