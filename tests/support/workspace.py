"""A folder to run the real command in, and access to its results: run folders, MLflow's rows, processes.

The command runs in a process (see tests/support/forked_command.py) that leads its own process group, like a
shell's job. MLflow is read straight from its database, because its client takes seconds to import and a
second for each new store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from harness.core.runs.run_folder import RunFolder
from tests.support import forked_command
from tests.support.forked_command import Command
from tests.support.paths import FAULTY, ROOT

FAULTY_SWEEP = ("framework=faulty", "optimizer=sgd", "data=iris", "train.epochs=3", "limit=off")
TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Run:
    """The content of a run folder. `pid` is the worker's."""

    folder: RunFolder
    config: dict[str, Any]
    result: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def status(self) -> str | None:
        return self.result.get("status")

    @property
    def pid(self) -> int:
        return int(self.events[0]["pid"])

    @property
    def attempts(self) -> list[str]:
        return sorted(path.name for path in self.folder.path.glob("attempts/*"))


@dataclass(frozen=True)
class Tracked:
    """A run in MLflow; `points` are the (key, step) of each metric value."""

    status: str
    active: bool
    tags: dict[str, str]
    points: list[tuple[str, int]]


class Workspace:
    """A working folder for commands, with a FAULTS file (see tests/support/faulty)."""

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        """`template`: a migrated database to start with, which saves a command seconds."""
        self.folder = folder
        self.results = folder / "results"
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self._faults = folder / "faults.json"
        self._commands: list[Command] = []
        self.plant({})
        if template is not None:
            self.results.mkdir()
            shutil.copyfile(template, self.results / "mlflow.db")

    def plant(self, faults: Mapping[int | str, str]) -> None:
        """Set the fault of each seed's run (`*`: any seed) from now on."""
        self._faults.write_text(json.dumps({str(seed): fault for seed, fault in faults.items()}))

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a process needs to use the faulty framework; they also identify our
        processes."""
        return {"PYTHONPATH": os.pathsep.join((str(ROOT), str(FAULTY))), "FAULTS": str(self._faults)}

    def start(self, *arguments: str) -> Command:
        """Start `evenbench ARGUMENTS` here."""
        env = {**os.environ, **self.environment, "TMPDIR": str(self.temporary)}
        command = forked_command.start([*arguments, "--config-dir", str(FAULTY / "conf")], self.folder, env)
        self._commands.append(command)
        return command

    def sweep(self, *arguments: str) -> Command:
        """Start a sweep in the faulty framework."""
        return self.start("-m", *FAULTY_SWEEP, *arguments)

    def runs(self) -> list[Run]:
        """All runs, by seed."""
        folders = [RunFolder(path.parent) for path in self.results.glob("runs/*/job.json")]
        runs = [Run(f, (f.job() or {})["config"], f.result() or {}, f.events()) for f in folders]
        return sorted(runs, key=lambda run: int(run.config["seed"]))

    def tracked(self, kind: str = "trial") -> list[Tracked]:
        """MLflow's runs of a kind, including deleted ones."""
        runs = []
        with contextlib.closing(sqlite3.connect(self.results / "mlflow.db")) as database:
            for run_id, status, stage in database.execute(
                "select run_uuid, status, lifecycle_stage from runs order by start_time"
            ).fetchall():
                tags = dict(database.execute("select key, value from tags where run_uuid = ?", (run_id,)))
                query = "select key, step from metrics where run_uuid = ?"
                points = list(database.execute(query, (run_id,)))
                if tags["kind"] == kind:
                    runs.append(Tracked(status, stage == "active", tags, points))
        return runs

    def workers(self) -> list[int]:
        """The workers that imported the faulty adapter, including dead ones."""
        path = self.folder / "workers"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def processes(self) -> list[int]:
        """The living processes that were started here, directly or indirectly."""
        return [process.pid for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        if any(process.pid == command.pid and command.poll() is None for command in self._commands):
            return True
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and process.environ().get("FAULTS") == str(self._faults)
        except psutil.Error:
            return False


def end(process: Command) -> tuple[int, str]:
    """Wait for a command; return its exit status and its output."""
    try:
        printed, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        raise AssertionError(f"the command did not end:\n{printed}") from None
    return process.returncode, printed


def wait_until(condition: Callable[[], object], process: Command | None = None) -> None:
    """Wait for a condition that must become true; fail early if the command ends without it."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            raise AssertionError(f"the command ended too early:\n{end(process)[1]}")
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.005)


def check_consistent(workspace: Workspace) -> None:
    """Check what must hold in any folder after all its commands have ended, however they ended."""
    assert workspace.processes() == []
    temporary = {path.name for path in workspace.temporary.rglob("*") if path.is_file()}
    assert temporary <= {"multirun.yaml"}  # Hydra's, from a killed sweep
    drafts = [path for path in workspace.results.rglob("*.tmp") if not path.name.startswith(".job.json.")]
    assert drafts == [], drafts  # except the shell's own, which a worker cannot tell from another command's
    everything = workspace.tracked("trial") + workspace.tracked("study")
    assert "RUNNING" not in [run.status for run in everything]
    active = [run for run in workspace.tracked() if run.active]
    for tracked in active:
        assert len(set(tracked.points)) == len(tracked.points), "a metric point is stored twice"
    ids = sorted(tracked.tags["run_id"] for tracked in active)
    assert ids == sorted(run.folder.run_id for run in workspace.runs()), (
        "not exactly one MLflow run for each run"
    )
    for run in workspace.runs():
        lines = (run.folder.path / "events.jsonl").read_text() if run.events else ""
        assert [json.loads(line) for line in lines.splitlines()] == run.events
        in_mlflow = next(t for t in active if t.tags["run_id"] == run.folder.run_id)
        assert in_mlflow.tags["status"] == run.status
        steps = [step for key, step in in_mlflow.points if key == "val/loss"]
        assert sorted(steps) == [epoch["epoch"] for epoch in run.result["epochs"]]


@contextlib.contextmanager
def cleanup(workspace: Workspace) -> Iterator[Workspace]:
    """Kill the processes that a failing test leaves running."""
    try:
        yield workspace
    finally:
        for pid in workspace.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
