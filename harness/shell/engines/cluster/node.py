"""A node's side of a slot: executes runs in a folder of its own, with the same workers as a single machine.

A request is a job with the names of the files that it reads, relative to a results folder. The reply is a
stream of messages: the worker's own events, and between them `file` (a file of the run in its current state:
the checkpoint during the run, all others at its end, `result.json` last), `exit` (how the worker died),
`limit` (the matrix limit of this node), `note` (a message for the user), `refused` (why this node can't
execute runs of this framework), and finally `ended`.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.config.run_config import RunConfig
from harness.core.runs.run_folder import CHECKPOINT, Job, RunFolder
from harness.core.storage.atomic import atomic_write
from harness.core.validation import ConfigError, parse, to_plain
from harness.shell.engines.slots import SlotSpec
from harness.shell.engines.worker_slot import WorkerSlot
from harness.shell.environment.versions import versions
from harness.shell.runs.records import RunTask
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.matmul_limits import MatmulLimits
from harness.shell.workers.process import Worker, WorkerDiedError

RESULTS = ("worker.log", "state.npz", "weights.npz", "result.json")  # sent in this order; the last ends a run
RETURNED = (CHECKPOINT, *RESULTS)
MAX_WORKERS = 2  # alive in a slot; each holds a framework in memory
PREFIX = "evenbench-node-"


class NodeAgent:
    """The folder and the workers of a slot on this node; `close` removes both."""

    def __init__(self) -> None:
        _remove_abandoned(Path(tempfile.gettempdir()))
        # created under a hidden name, so that no other agent finds the folder before it is locked
        hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
        self._lock = (hidden / "lock").open("w")  # held while this process lives
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._folder = hidden.rename(hidden.with_name(hidden.name.removeprefix(".")))
        self._slot = WorkerSlot(SlotSpec(platform.node()), MAX_WORKERS)
        self._worker: Worker | None = None
        self._notes: list[str] = []
        self._limits = MatmulLimits(self._notes.append)

    def missing_files(self, names: Sequence[str]) -> list[str]:
        """Which files to send: data sets only once, as they are named by content; other files each time."""
        return [name for name in names if not (name.startswith("data/") and (self._folder / name).exists())]

    def put(self, name: str, content: bytes) -> None:
        """Store a file that a request reads."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)

    def warm_up(self, plain_job: Mapping[str, Any]) -> None:
        """Start the worker that a job needs and wait for it; a failure to start is reported by its runs."""
        config = RunConfig.parse(parse(Job, plain_job).config)
        if config.isolation == "warm":
            self._slot.worker(WorkerKey.of(config))
            self._slot.ready()
        self._limit(config)  # measured now, while no run of the sweep is timed

    def run(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Execute a request whose files were put here; yields messages, with file `content` as bytes."""
        job = parse(Job, request["job"])
        config = RunConfig.parse(job.config)
        if reason := refusal(config, job.versions):
            yield {"event": "refused", "message": reason}
            return
        limit = self._limit(config)
        while self._notes:
            yield {"event": "note", "message": self._notes.pop(0)}
        if limit is not None:
            yield {"event": "limit", "gflops": limit}
            job = replace(job, limit_gflops=limit)
        folder = RunFolder(self._folder / "runs" / job.run_id)
        folder.write_job(to_plain(job))
        run = RunTask(config, job, folder, WorkerKey.of(config), int(request["program"]))
        try:
            yield from self._execute(run, bool(request["prunable"]))
        finally:
            shutil.rmtree(folder.path, ignore_errors=True)  # `close` may have removed it
        yield {"event": "ended"}

    def continue_or_stop(self, should_continue: bool) -> None:
        """Answer the last `epoch` message of a prunable run, from any thread."""
        assert self._worker is not None
        self._worker.continue_or_stop(should_continue)

    def close(self) -> None:
        """End the workers and remove the folder."""
        self._slot.stop()
        self._slot.close(kill=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    def _execute(self, run: RunTask, prunable: bool) -> Iterator[dict[str, Any]]:
        checkpoint, exit = run.folder.checkpoint, None
        sent_ns = _modified_ns(checkpoint)  # the checkpoint that the run resumes from
        try:
            for worker, event in self._slot.run(run, prunable):
                self._worker = worker
                if (modified_ns := _modified_ns(checkpoint)) != sent_ns:
                    yield from _file_messages([checkpoint])
                    sent_ns = modified_ns
                yield event
        except WorkerDiedError as error:
            exit = error.exit
        if _modified_ns(checkpoint) != sent_ns:
            yield from _file_messages([checkpoint])
        yield from _file_messages(run.folder.path / name for name in RESULTS)
        if exit is not None:
            yield {"event": "exit", "exit": to_plain(exit)}

    def _limit(self, config: RunConfig) -> float | None:
        """The matrix limit of this node, measured unless it is stored."""
        if config.limit != "auto":
            return None
        return self._limits.get(self._folder, config, self._slot.ready())


def identity() -> dict[str, Any]:
    """The host and the process id of this agent."""
    return {"host": platform.node(), "pid": os.getpid()}


def refusal(config: RunConfig, expected: Mapping[str, str]) -> str:
    """Why this node can't execute runs of this framework; empty if its versions are the `expected` ones."""
    host = platform.node()
    try:
        installed = versions(config.framework)
    except ConfigError as error:
        return f"{host}: {error.mistakes[0].problem}"
    differences = [
        f"{name} {installed.get(name, 'missing')} (the sweep has {version})"
        for name, version in expected.items()
        if installed.get(name) != version
    ]
    return f"{host} has {', '.join(differences)}" if differences else ""


def _file_messages(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Messages with the files that exist; a run that ends may remove its checkpoint at any time."""
    for path in paths:
        try:
            message = {"event": "file", "name": path.name, "content": path.read_bytes()}
        except FileNotFoundError:
            continue
        yield message


def _modified_ns(path: Path) -> int:
    """The modification time in ns, 0 if the file does not exist."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of killed agents, which are those whose lock is free."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            with (folder / "lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, not complete yet, or another user's
            continue
