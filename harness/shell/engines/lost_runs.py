"""The result of a run whose worker ended without writing one.

The engine that saw the worker end writes the result. A lock on the run's folder makes sure that one result is
written per attempt, whichever processes look at the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.runs.run_folder import CONCLUSIVE, Failure, Result, RunFolder, epoch_record
from harness.core.validation import to_plain
from harness.shell.runs.records import RunTask
from harness.shell.workers.process import WorkerExit

INTERRUPTED = WorkerExit("killed", "interrupted", "the sweep was interrupted")


def write_result(
    run: RunTask, exit: WorkerExit, started: Mapping[str, Any] | None, wait: bool = True
) -> None:
    """Write the result that the worker could not write.

    The worker's lock is free once it has ended, and another sweep may have taken the run since. `started` is
    the event that began this engine's attempt, None if it never began. Raises BlockingIOError with
    `wait=False` if another sweep holds the folder.
    """
    folder = run.folder
    with folder.locked(wait):
        status = folder.status()
        if holds_attempt(folder, started):
            if status is not None:
                return
        elif status is not None and (started or (status in CONCLUSIVE and not run.config.force)):
            return
        else:
            folder.set_aside()
        epochs = tuple(epoch_record(event) for event in folder.events() if event["event"] == "epoch")
        failure = Failure(exit.type, exit.message, folder.log_tail() or exit.log_tail)
        run_id, certificate = run.job.run_id, run.job.certificate
        result = Result(run_id, exit.status, failure, epochs=epochs, certificate=certificate)
        folder.write_result(to_plain(result))


def holds_attempt(folder: RunFolder, started: Mapping[str, Any] | None) -> bool:
    """Whether the folder holds the attempt that began with the event `started`."""
    return started is not None and folder.events()[:1] == [started]
