"""What goes on at a node: runs in a folder of its own, with the same workers as on a machine alone.

An order is a job with the names of the files that it reads, relative to a results folder. What is said back
are the worker's own events and, in between, messages of ours: `file` (a file of the run as it is now: its
checkpoint while it goes on, all others at its end, `result.json` last), `died` (how its worker died),
`limit` (what the run is held against here), `note` (for people), `refused` (why no run of this framework can
be done here), and `ended` at last.
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
from harness.core.storage.atomic import replacing
from harness.core.validation import ConfigError, parse, to_plain
from harness.shell.engines.local import WorkerSlot
from harness.shell.engines.slots import SlotSpec
from harness.shell.environment.versions import versions
from harness.shell.runs.records import RunTask
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.matmul_limits import MatmulLimits
from harness.shell.workers.process import Worker, WorkerDiedError

RESULTS = ("worker.log", "state.npz", "weights.npz", "result.json")  # in this order: the last one ends a run
RETURNED = (CHECKPOINT, *RESULTS)
KEPT_WORKERS = 2  # alive in a place; each holds a framework in memory
PREFIX = "evenbench-node-"


class NodeAgent:
    """A place's own folder and workers; `close` removes both."""

    def __init__(self) -> None:
        _sweep_up(Path(tempfile.gettempdir()))
        made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
        self._lock = (made / "lock").open("w")  # held as long as we live
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._folder = made.rename(made.with_name(made.name.removeprefix(".")))
        self._slot = WorkerSlot(SlotSpec(platform.node()), KEPT_WORKERS)
        self._worker: Worker | None = None
        self._news: list[str] = []
        self._limits = MatmulLimits(self._news.append)

    def lacks(self, names: Sequence[str]) -> list[str]:
        """Those of the files that are not here. Data are named after their content; other files change."""
        return [name for name in names if not (name.startswith("data/") and (self._folder / name).exists())]

    def put(self, name: str, content: bytes) -> None:
        """Take a file of an order."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    def warm(self, plain: Mapping[str, Any]) -> None:
        """Start the worker that a job needs, and wait for it; one that can't start is the affair of a run."""
        config = RunConfig.parse(parse(Job, plain).config)
        if config.isolation == "warm":
            self._slot.worker(WorkerKey.of(config))
            self._slot.ready()
        self._limit(config)  # now, while no run of the sweep is timed

    def run(self, order: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Carry out an order whose files were put here; yields messages, with a file's `content` in bytes."""
        job = parse(Job, order["job"])
        config = RunConfig.parse(job.config)
        if reason := unfit(config, job.versions):
            yield {"event": "refused", "message": reason}
            return
        limit = self._limit(config)
        while self._news:
            yield {"event": "note", "message": self._news.pop(0)}
        if limit is not None:
            yield {"event": "limit", "gflops": limit}
            job = replace(job, limit_gflops=limit)
        folder = RunFolder(self._folder / "runs" / job.run_id)
        folder.write_job(to_plain(job))
        run = RunTask(config, job, folder, WorkerKey.of(config), int(order["program"]))
        try:
            yield from self._run(run, bool(order["judged"]))
        finally:
            shutil.rmtree(folder.path)
        yield {"event": "ended"}

    def _run(self, run: RunTask, judged: bool) -> Iterator[dict[str, Any]]:
        checkpoint, death = run.folder.checkpoint, None
        sent = _written(checkpoint)  # the one that it goes on from
        try:
            for worker, event in self._slot.run(run, judged):
                self._worker = worker
                if (now := _written(checkpoint)) != sent:
                    yield from _files([checkpoint])
                    sent = now
                yield event
        except WorkerDiedError as error:
            death = error.death
        if _written(checkpoint) != sent:
            yield from _files([checkpoint])
        yield from _files(run.folder.path / name for name in RESULTS)
        if death is not None:
            yield {"event": "died", "death": to_plain(death)}

    def judge(self, go: bool) -> None:
        """Answer the last `epoch` of a run that is judged, from any thread."""
        assert self._worker is not None
        self._worker.judge(go)

    def _limit(self, config: RunConfig) -> float | None:
        """The matrix limit of this node, measured where none is kept."""
        if config.limit != "auto":
            return None
        return self._limits.of(self._folder, config, self._slot.ready())

    def close(self) -> None:
        """End the workers and remove the folder."""
        self._slot.stop()
        self._slot.close(kill=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()


def about() -> dict[str, Any]:
    """Who speaks."""
    return {"host": platform.node(), "pid": os.getpid()}


def unfit(config: RunConfig, wanted: Mapping[str, str]) -> str:
    """Why runs of this framework can't be done on this node; empty if they can."""
    host = platform.node()
    try:
        found = versions(config.framework)
    except ConfigError as error:
        return f"{host}: {error.mistakes[0].problem}"
    other = [
        f"{name} {found.get(name, 'missing')} (the sweep has {version})"
        for name, version in wanted.items()
        if found.get(name) != version
    ]
    return f"{host} has {', '.join(other)}" if other else ""


def _files(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Those that are there; a run that ends removes its checkpoint, at any time."""
    for path in paths:
        try:
            message = {"event": "file", "name": path.name, "content": path.read_bytes()}
        except FileNotFoundError:
            continue
        yield message


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _sweep_up(parent: Path) -> None:
    """Remove the folders of places whose process was killed: nobody holds their locks any more."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            with (folder / "lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, being made, or another user's
            continue
