"""A run is a folder: what was asked for, what happened, what came out.

`job.json` goes in, `events.jsonl` grows line by line while the run goes on, `result.json`, `weights.npz` and
`state.npz` come out. Files are written under a temporary name and renamed, lines are appended whole, so a
kill at any instant leaves a folder that can be read; a run is finished when its `result.json` says so, and
not before. Whoever works in a folder holds its `lock`, which the operating system lets go when the process
dies.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import harness.core.training.training_state
from harness.core.adapter import Weights
from harness.core.storage import atomic, locks, npz
from harness.core.storage.json_files import read_json, write_json
from harness.core.training.training_state import State

Status = Literal["finished", "failed", "timeout", "killed", "diverged", "pruned"]
"""`pruned`: a search stopped it on purpose, because others of its runs were better by then."""

CONCLUSIVE: tuple[Status, ...] = ("finished", "diverged")
"""Statuses that doing the run again would only repeat: a divergence is a property of the configuration."""

INTENDED: tuple[Status, ...] = ("finished", "pruned")
"""Statuses of a run with which nothing is wrong."""

CHECKPOINT, UNUSABLE = "checkpoint.npz", "checkpoint.unusable.npz"
ATTEMPT_FILES = ("events.jsonl", "result.json", "weights.npz", "state.npz", "worker.log")
TAIL_BYTES = 16384  # of a log, at most; a worker may print without end


@dataclass(frozen=True)
class Job:
    """What a worker is told: `config` is the plain form of a RunConfig, `data_file` a path relative to the
    results folder, `versions` those that went into the run id, `certificate` what is proved of the run,
    `limit_gflops` the rate at which the device multiplies matrices, `source` the digest of what the run
    `init.from_run` had left when this one was identified, `beside` how many others may go on beside it on the
    machine, `revisions` git's of the code (`harness.shell.environment.git_revisions`), `calibration` the
    times by which the execution was chosen, where the best was asked for (`harness.core.runs.autotune`)."""

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
    """Why a run did not finish: the exception's type or `exit`, `signal`, `timeout`, one line, and the end of
    the worker's log."""

    type: str
    message: str
    log_tail: str = ""


@dataclass(frozen=True)
class Result:
    """What came out of a run. `epochs` has the raw record of every epoch, `metrics` the final values; `start`
    says where the weights came from (`harness.core.runs.warm_start.WarmStart`) if they were not all new, or
    not all trained."""

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
        """Make the folder and say what is asked for. The studies that the run belonged to keep it."""
        self.path.mkdir(parents=True, exist_ok=True)
        new, studies = str(job.get("study", "default")), self.studies()
        for study in studies:
            if study != new:
                self._note(study, True)
        if studies and new not in studies:
            self._note(new, True)
        write_json(self.path / "job.json", job)

    def studies(self) -> list[str]:
        """The studies that the run belongs to: the one that it was done for, and those that asked for it
        when it was there (`studies.jsonl`), without those that were removed. The first one is its home."""
        job = self.job()
        members = {} if job is None else {str(job.get("study", "default")): None}
        for line in self._study_lines():
            if line["member"]:
                members[line["study"]] = None
            else:
                members.pop(line["study"], None)
        return list(members)

    def join(self, study: str) -> bool:
        """Add the run to a study; False if it is in it."""
        if study in self.studies():
            return False
        self._note(study, True)
        return True

    def leave(self, study: str) -> None:
        """Take the run out of a study."""
        self._note(study, False)

    def _study_lines(self) -> list[dict[str, Any]]:
        try:
            text = (self.path / "studies.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        found = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # blank, or half of one that a crash cut off
                found.append(json.loads(line))
        return found

    def _note(self, study: str, member: bool) -> None:
        """Add a line to `studies.jsonl`: only ever appended to, because two commands may do so at once."""
        with (self.path / "studies.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"study": study, "member": member}) + "\n")

    def set_aside(self) -> None:
        """Keep what an earlier attempt left in `attempts/<n>/`, so that a new one starts clean.

        Its checkpoint stays where the new one finds it. Whoever calls it holds the lock.
        """
        for name in ("result.json", "weights.npz", "state.npz", CHECKPOINT):
            atomic.remove_half_written(self.path / name)
        left = [name for name in ATTEMPT_FILES if (self.path / name).exists()]
        if not left:
            return
        attempts = self.path / "attempts"
        attempts.mkdir(exist_ok=True)
        numbers = [int(path.name) for path in attempts.iterdir() if path.name.isdigit()]
        target = attempts / str(1 + max(numbers, default=0))
        target.mkdir()
        # the result goes first: without it, the folder is a run that has not ended
        for name in sorted(left, key=lambda name: name != "result.json"):
            os.replace(self.path / name, target / name)

    def job(self) -> dict[str, Any] | None:
        """`job.json`, or None where there is none."""
        return read_json(self.path / "job.json")

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to `events.jsonl`, in one write."""
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """The events in `events.jsonl`, without a partial last line (a kill) and damaged lines (a crash)."""
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
        """Write `result.json`: from here on the run has ended."""
        write_json(self.path / "result.json", result)

    def result(self) -> dict[str, Any] | None:
        """`result.json`, or None for a run that has not ended."""
        return read_json(self.path / "result.json")

    def status(self) -> str | None:
        """The status in `result.json`, or None for a run that has not ended."""
        result = self.result()
        return None if result is None else str(result["status"])

    def write_end(self, weights: Weights, state: State, epochs: int) -> None:
        """Write where the training stopped, after so many epochs: the canonical weights, and the state of the
        optimizer and of the dropout masks that another run goes on with."""
        harness.core.training.training_state.save(self.path / "state.npz", state, epochs)
        npz.save(self.path / "weights.npz", weights)

    @property
    def checkpoint(self) -> Path:
        """The file with where the last attempt was, see `harness.core.runs.checkpoint`; gone once the run has
        ended."""
        return self.path / CHECKPOINT

    def set_checkpoint_aside(self) -> None:
        """Keep a checkpoint that is of no use where no attempt looks for it."""
        os.replace(self.checkpoint, self.path / UNUSABLE)

    def log_tail(self) -> str:
        """The last lines of `worker.log`."""
        try:
            with (self.path / "worker.log").open("rb") as file:
                return last_lines(file)
        except FileNotFoundError:
            return ""

    @contextlib.contextmanager
    def locked(self, wait: bool = True) -> Iterator[None]:
        """Hold the folder's lock, after whoever holds it now: the same run may belong to two sweeps.

        With `wait=False` raises BlockingIOError where someone holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locks.exclusive_lock(self.path / "lock", wait):
            yield


def runs(results_dir: Path) -> list[RunFolder]:
    """All run folders below a results folder, by name."""
    return [RunFolder(p) for p in sorted((results_dir / "runs").glob("*")) if (p / "job.json").exists()]


def epoch_record(event: Mapping[str, Any]) -> dict[str, Any]:
    """What a result keeps of an `epoch` event: all but what makes it one."""
    return {key: value for key, value in event.items() if key not in ("event", "time_ms")}


def last_lines(log: BinaryIO, lines: int = 20) -> str:
    """The end of a log, which is read from its end."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - TAIL_BYTES))
    return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])
