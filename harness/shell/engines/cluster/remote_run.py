"""One attempt at a run in a remote slot: the run's folder here mirrors what the node writes.

The folder is locked during the attempt, as a worker on this machine would do, so it never mixes two attempts.
Events are appended as they arrive, files are replaced whole, and `result.json` comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.runs.run_folder import CONCLUSIVE
from harness.core.storage.atomic import atomic_write
from harness.core.validation import parse, to_plain
from harness.shell.engines import lost_runs
from harness.shell.engines.cluster.node import RETURNED
from harness.shell.engines.cluster.portion import Portion
from harness.shell.engines.cluster.protocol import NodeRefusedError, RemoteSlot, SlotLostError
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.process import WorkerDiedError, WorkerExit


class RemoteRun:
    """An attempt at `run` in `slot`; `started_event` is the worker's event that began it, if it began."""

    def __init__(
        self, run: PreparedRun, slot: RemoteSlot, portion: Portion, note: Callable[[str], None]
    ) -> None:
        self.run = run
        self.started_event: Mapping[str, Any] | None = None
        self._slot, self._portion, self._note = slot, portion, note

    def execute(self) -> None:
        """Execute the run and fill its folder.

        Raises WorkerDiedError, SlotLostError, NodeRefusedError.
        """
        run, folder = self.run, self.run.folder
        repeated = run.job.run_id in self._portion.losses
        with folder.locked():  # waits for another sweep that executes the same run
            if folder.status() in CONCLUSIVE and not run.config.force:
                return
            if run.config.force and not repeated:
                folder.checkpoint.unlink(missing_ok=True)
            folder.set_aside()
            exit = self._receive_all()
            if exit is not None:
                raise WorkerDiedError(exit)
            if folder.status() is None:
                raise SlotLostError("it reported the end of the run without sending a result")
            if folder.status() in CONCLUSIVE:
                folder.checkpoint.unlink(missing_ok=True)

    def write_result(self, exit: WorkerExit, wait: bool = True) -> None:
        """Write the result that the worker could not write; see `lost_runs.write_result`."""
        lost_runs.write_result(self.run, exit, self.started_event, wait)

    def record_loss(self, error: SlotLostError, retries: int) -> bool:
        """Record the attempt as killed, because its slot was lost; returns whether the run is repeated."""
        losses, run_id, name = self._portion.losses, self.run.job.run_id, self._slot.name
        losses[run_id] = losses.get(run_id, 0) + 1
        repeat = losses[run_id] <= retries
        total = f" (lost {losses[run_id]} times in total)" if not repeat and losses[run_id] > 1 else ""
        message = f"{name} was lost in the middle of the run{total}: {error}"
        self.write_result(WorkerExit("killed", "node", message))
        if repeat:
            self._note(f"{name} was lost ({error}); {self.run.config.label()} is repeated")
        return repeat

    def _receive_all(self) -> WorkerExit | None:
        """Process the node's messages until the run has ended; returns how its worker died, if it did."""
        folder, exit = self.run.folder, None
        request = {
            "job": to_plain(self.run.job),
            "prunable": self._portion.prunable,
            "program": self.run.program,
        }
        for message in self._slot.run(request, _files(self.run)):
            match message["event"]:
                case "file":
                    _write_file(folder.path, message["name"], message["content"])
                case "exit":
                    exit = parse(WorkerExit, message["exit"])
                case "limit":
                    self.run = replace(self.run, job=replace(self.run.job, limit_gflops=message["gflops"]))
                    folder.write_job(to_plain(self.run.job))
                case "note":
                    self._note(f"{self._slot.name}: {message['message']}")
                case "refused":
                    raise NodeRefusedError(message["message"])
                case "ended":
                    break
                case event:
                    folder.append_event(message)
                    if event == "started":
                        self.started_event = message
                    should_continue = self._portion.event(self.run, message)
                    if should_continue is not None:
                        self._slot.continue_or_stop(should_continue)
        return exit


def _files(run: PreparedRun) -> dict[str, Path]:
    """The files that the run reads, by their names relative to a results folder."""
    names = [run.job.data_file]
    if (source := run.config.init.from_run) is not None:
        names += [f"runs/{source}/{name}" for name in ("job.json", "result.json", "weights.npz", "state.npz")]
    names.append(f"runs/{run.job.run_id}/{run.folder.checkpoint.name}")
    paths = {name: run.results_dir / name for name in names}
    return {name: path for name, path in paths.items() if path.exists()}


def _write_file(folder: Path, name: str, content: bytes) -> None:
    """Write a file of a run; any name that a run's folder does not have is refused."""
    if name not in RETURNED:
        raise SlotLostError(f"a node sent {name!r}, which is not a file of a run")
    with atomic_write(folder / name) as temporary:
        temporary.write_bytes(content)
