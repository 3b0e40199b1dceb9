"""The result of a run whose worker died, written by whoever saw it die: exactly once, whoever else looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.runs.run_folder import CONCLUSIVE, Failure, Result, RunFolder, epoch_record
from harness.core.validation import to_plain
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.process import WorkerExit

INTERRUPTED = WorkerExit("killed", "interrupted", "the sweep was interrupted")


def record(run: PreparedRun, death: WorkerExit, begun: Mapping[str, Any] | None, wait: bool = True) -> None:
    """Write the result that the worker could not write any more.

    The lock is free when it is dead, and another sweep may have taken the run over. `begun` is the event
    that began our attempt. Raises BlockingIOError with `wait=False`, where another sweep works on it.
    """
    folder = run.folder
    with folder.locked(wait):
        status = folder.status()
        if is_attempt(folder, begun):
            if status is not None:
                return
        elif status is not None and (begun or (status in CONCLUSIVE and not run.config.force)):
            return
        else:
            folder.set_aside()
        epochs = tuple(epoch_record(event) for event in folder.events() if event["event"] == "epoch")
        failure = Failure(death.type, death.message, folder.log_tail() or death.log_tail)
        run_id, proof = run.job.run_id, run.job.certificate
        result = Result(run_id, death.status, failure, epochs=epochs, certificate=proof)
        folder.write_result(to_plain(result))


def is_attempt(folder: RunFolder, begun: Mapping[str, Any] | None) -> bool:
    """Whether what the folder holds is the attempt that began with this event."""
    return begun is not None and folder.events()[:1] == [begun]
