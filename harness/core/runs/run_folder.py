"""The folder of a run, `<results_dir>/runs/<run_id>`: its request, its events and its result.

The shell writes `job.json`; the worker appends to `events.jsonl` line by line during the run, and writes
`weights.npz`, `state.npz` and `result.json` at its end. Files are replaced atomically and lines are appended
in one write, so a kill at any instant leaves a readable folder. A run has ended once its `result.json`
exists, and not before. A process that works in a folder holds its `lock`, which the operating system releases
when the process dies.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from harness.core.adapter import Weights
from harness.core.storage import atomic, locks, npz
from harness.core.storage.json_files import read_json, write_json
from harness.core.training import training_state
from harness.core.training.training_state import State

Status = Literal["finished", "failed", "timeout", "killed", "diverged", "pruned"]
"""`pruned`: a search stopped it early because other trials were better."""

CONCLUSIVE: tuple[Status, ...] = ("finished", "diverged")
"""Statuses that a repetition would only reproduce: divergence is a property of the configuration."""

INTENDED: tuple[Status, ...] = ("finished", "pruned")
"""Statuses that are not failures."""

CHECKPOINT, UNUSABLE = "checkpoint.npz", "checkpoint.unusable.npz"
ATTEMPT_FILES = ("events.jsonl", "result.json", "weights.npz", "state.npz", "worker.log")
TAIL_BYTES = 16384  # read from the end of a log, which may be of any size


@dataclass(frozen=True)
class Job:
    """The request that a worker gets. The field names are keys of `job.json`.

    `config`: the plain form of a RunConfig. `data_file`: a path relative to the results folder. `versions`:
    those hashed in the run id. `certificate`: the certificate of the run. `limit_gflops`: the device's matrix
    limit. `source`: the digest of the files of the run `init.from_run` when this run's id was computed.
    `beside`: how many other runs may run concurrently on the machine. `revisions`: the git revisions of the
    code (`harness.shell.environment.git_revisions`). `calibration`: the measured times of the candidates if
    the execution was autotuned (`harness.core.runs.autotune`).
    """

    run_id: str
    study: str
    config: dict[str, Any]
    data_file: str
    versions: dict[str, str] = field(default_factory=dict)
    certificate: dict[str, Any] | None = None
    limit_gflops: float | None = None
    source: str | None = None
    beside: int = 0
    revisions: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None


@dataclass(frozen=True)
class Failure:
    """The reason why a run did not finish.

    `type`: the exception's type, or `exit`, `signal`, `timeout`. `message`: one line. `log_tail`: the end of
    the worker's log.
    """

    type: str
    message: str
    log_tail: str = ""


@dataclass(frozen=True)
class Result:
    """The result of a run. The field names are keys of `result.json`.

    `epochs`: the raw record of every epoch. `metrics`: the final values. `start`: the origin of the weights
    (`harness.core.runs.warm_start.WarmStart`) if not all of them were new, or not all trained.
    """

    run_id: str
    status: Status
    error: Failure | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    epochs: tuple[dict[str, Any], ...] = ()
    timing: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] | None = None
    start: dict[str, Any] | None = None


class RunFolder:
    """The folder of one run, `<results_dir>/runs/<run_id>`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def run_id(self) -> str:
        """The name of the folder."""
        return self.path.name

    def write_job(self, job: Mapping[str, Any]) -> None:
        """Create the folder and write `job.json`, preserving existing study memberships."""
        self.path.mkdir(parents=True, exist_ok=True)
        new, studies = str(job.get("study", "default")), self.studies()
        for study in studies:
            if study != new:
                self._append_membership(study, True)
        if studies and new not in studies:
            self._append_membership(new, True)
        write_json(self.path / "job.json", job)

    def studies(self) -> list[str]:
        """Return the studies that the run belongs to; the first one is its home.

        They are the study that the run was executed for, and those that requested the finished run later
        (`studies.jsonl`), without removed ones.
        """
        job = self.job()
        members = {} if job is None else {str(job.get("study", "default")): None}
        for line in self._study_lines():
            if line["member"]:
                members[line["study"]] = None
            else:
                members.pop(line["study"], None)
        return list(members)

    def join(self, study: str) -> bool:
        """Add the run to a study; return False if it already belongs to it."""
        if study in self.studies():
            return False
        self._append_membership(study, True)
        return True

    def leave(self, study: str) -> None:
        """Remove the run from a study."""
        self._append_membership(study, False)

    def _study_lines(self) -> list[dict[str, Any]]:
        try:
            text = (self.path / "studies.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        memberships = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # a blank line, or one that a crash cut off
                memberships.append(json.loads(line))
        return memberships

    def _append_membership(self, study: str, member: bool) -> None:
        """Append a line to `studies.jsonl`, which is never rewritten: two commands may append at once."""
        with (self.path / "studies.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"study": study, "member": member}) + "\n")

    def set_aside(self) -> None:
        """Move the files of an earlier attempt to `attempts/<n>/`, so that a new attempt starts clean.

        Its checkpoint stays in place for the new attempt. The caller holds the lock.
        """
        for name in ("result.json", "weights.npz", "state.npz", CHECKPOINT):
            atomic.remove_half_written(self.path / name)
        existing = [name for name in ATTEMPT_FILES if (self.path / name).exists()]
        if not existing:
            return
        attempts = self.path / "attempts"
        attempts.mkdir(exist_ok=True)
        numbers = [int(path.name) for path in attempts.iterdir() if path.name.isdigit()]
        target = attempts / str(1 + max(numbers, default=0))
        target.mkdir()
        # the result moves first: without it, the folder is that of a run that has not ended
        for name in sorted(existing, key=lambda name: name != "result.json"):
            os.replace(self.path / name, target / name)

    def job(self) -> dict[str, Any] | None:
        """Read `job.json`; None if missing."""
        return read_json(self.path / "job.json")

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Append one line to `events.jsonl`, in one write."""
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """Read `events.jsonl`, skipping a partial last line (after a kill) and damaged lines (after a
        crash)."""
        try:
            text = (self.path / "events.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        events = []
        for line in text.split("\n")[:-1]:
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
        return events

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`, which ends the run."""
        write_json(self.path / "result.json", result)

    def result(self) -> dict[str, Any] | None:
        """Read `result.json`; None for a run that has not ended."""
        return read_json(self.path / "result.json")

    def status(self) -> str | None:
        """Read the status from `result.json`; None for a run that has not ended."""
        result = self.result()
        return None if result is None else str(result["status"])

    def write_end(self, weights: Weights, state: State, epochs: int) -> None:
        """Write the final canonical weights, and the state from which another run can resume.

        `epochs` is the number of trained epochs.
        """
        training_state.save(self.path / "state.npz", state, epochs)
        npz.save(self.path / "weights.npz", weights)

    @property
    def checkpoint(self) -> Path:
        """The path of the last attempt's checkpoint (`harness.core.runs.checkpoint`), deleted at the run's
        end."""
        return self.path / CHECKPOINT

    def set_checkpoint_aside(self) -> None:
        """Rename an unusable checkpoint, so that no attempt tries to read it again."""
        os.replace(self.checkpoint, self.path / UNUSABLE)

    def log_tail(self) -> str:
        """Return the last lines of `worker.log`."""
        try:
            with (self.path / "worker.log").open("rb") as file:
                return last_lines(file)
        except FileNotFoundError:
            return ""

    @contextlib.contextmanager
    def locked(self, wait: bool = True) -> Iterator[None]:
        """Acquire the folder's lock, blocking until it is free: two sweeps may contain the same run.

        With `wait=False`, raise BlockingIOError if another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locks.exclusive_lock(self.path / "lock", wait):
            yield


def runs(results_dir: Path) -> list[RunFolder]:
    """Return all run folders in a results folder, sorted by name."""
    return [RunFolder(p) for p in sorted((results_dir / "runs").glob("*")) if (p / "job.json").exists()]


def epoch_record(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an `epoch` event that a result contains: all but `event` and `time_ms`."""
    return {key: value for key, value in event.items() if key not in ("event", "time_ms")}


def last_lines(log: BinaryIO, lines: int = 20) -> str:
    """Return the last lines of a log, reading at most `TAIL_BYTES` from its end."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - TAIL_BYTES))
    return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])
