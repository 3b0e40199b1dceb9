"""Kill sweeps at random instants, resume them, and check that every result exists exactly once.

    python -m tests.bench.kills [--json] [--kills 50] [--runs 30] [--seed 0] [--framework torch]

Each row is a new folder and a sweep of 30 runs with two workers, killed once by SIGKILL: the shell
(`parent`), one worker (`worker`), or all processes at once (`all`). For `copy`, all processes are stopped,
the results folder is copied, including MLflow's database and its log, and the end of the newest event file is
cut off, as a power failure may leave it; the sweep resumes in the copy. The kill comes after a random number
of seconds, or after a random number of epochs. Then the same command runs again, sometimes immediately, while
workers of the killed one may still live.

In the end every run must be finished once, and runs finished before the kill must be unchanged. MLflow must
have one run for each, none of them RUNNING, and every metric of every epoch once, with the value in
result.json. tests/system/test_kills.py does a few of these kills in the test suite.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness.core.storage import user_cache
from tests.bench.report import Report, Table, plain, say
from tests.support.forked_command import Command
from tests.support.workspace import FAULTY_SWEEP, Workspace, check_consistent, cleanup, end, wait_until

VICTIMS = ("parent", "worker", "all", "copy")
TORCH_SWEEP = ("framework=torch", "data=digits", "train.epochs=4", "limit=off")
EPOCHS = 4
START_S = 10.0  # approximate duration of a command; random instants lie within
TORN = 60  # largest number of bytes that a power failure cuts off the end of a file


@dataclass(frozen=True)
class Sweep:
    """The sweep to kill: a number of seeds in `torch` or in the slow framework of tests/support/faulty."""

    framework: str
    runs: int

    def start(self, workspace: Workspace) -> Command:
        """Start the command."""
        arguments = (f"seed=range({self.runs})", f"train.epochs={EPOCHS}", "workers=2")
        if self.framework == "torch":
            return workspace.start("-m", *TORCH_SWEEP, *arguments)
        workspace.plant({"*": "slow"})
        return workspace.start("-m", *FAULTY_SWEEP, *arguments)


@dataclass(frozen=True)
class Kill:
    """A kill and its outcome; `wrong` lists the errors. `instant`: the time of the kill, in words."""

    victim: str
    instant: str
    finished_before: int
    running_before: int
    finished_after: int
    again: int
    running: int
    doubles: int
    whole: int
    wrong: tuple[str, ...]


def kill_once(workspace: Workspace, sweep: Sweep, victim: str, rng: random.Random) -> Kill:
    """Start a sweep in an empty workspace, kill it, resume it, and check the results."""
    process = sweep.start(workspace)
    instant = _wait(workspace, sweep, process, rng)
    _kill(workspace, process, victim, rng)
    end(process)
    if victim != "worker" and rng.random() < 0.5:
        wait_until(lambda: not workspace.processes())
    before = _finished(workspace)
    running_before = sum(tracked.status == "RUNNING" for tracked in _tracked(workspace))
    status, printed = end(sweep.start(workspace))
    wait_until(lambda: not workspace.processes())
    return _check(workspace, sweep, victim, instant, before, running_before, (status, printed))


def _wait(workspace: Workspace, sweep: Sweep, process: Command, rng: random.Random) -> str:
    """Wait for a random instant, or the end of the sweep if that is earlier."""
    if rng.random() < 0.3:
        after_s = rng.uniform(0.1, START_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after_s)
        return f"{after_s:.2f} s"
    epochs = rng.randrange(sweep.runs * EPOCHS)
    while process.poll() is None and _epochs(workspace) < epochs:
        time.sleep(0.005)
    time.sleep(rng.uniform(0.0, 0.1))
    return f"{epochs} epochs"


def _epochs(workspace: Workspace) -> int:
    count = 0
    for path in workspace.results.glob("runs/*/events.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # it was set aside
            count += path.read_bytes().count(b'"epoch",')
    return count


def _kill(workspace: Workspace, process: Command, victim: str, rng: random.Random) -> None:
    if victim == "parent":
        process.kill()
    elif victim == "worker":
        workers = [pid for pid in workspace.processes() if pid != process.pid]
        if workers:  # none before the first and after the last run
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
    elif victim == "all":
        _signal(workspace, signal.SIGKILL)
    else:
        _signal(workspace, signal.SIGSTOP)
        copy = workspace.folder / "copy"
        if workspace.results.exists():
            shutil.copytree(workspace.results, copy)
            _tear(copy, rng)
        _signal(workspace, signal.SIGKILL)
        wait_until(lambda: not workspace.processes())
        if copy.exists():
            workspace.results.rename(workspace.folder / "lost")
            copy.rename(workspace.results)


def _signal(workspace: Workspace, number: int) -> None:
    for pid in workspace.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _tear(results: Path, rng: random.Random) -> None:
    """Cut off the end of the newest event file of a run that has not ended."""
    files = [
        path for path in results.glob("runs/*/events.jsonl") if not path.with_name("result.json").exists()
    ]
    if files:
        path = max(files, key=lambda path: path.stat().st_mtime_ns)
        os.truncate(path, max(0, path.stat().st_size - rng.randrange(TORN)))


def _finished(workspace: Workspace) -> dict[str, tuple[Any, ...]]:
    """The finished runs, with everything that must not change."""
    return {
        run.folder.run_id: (run.events, run.result, run.attempts)
        for run in workspace.runs()
        if run.status == "finished"
    }


def _tracked(workspace: Workspace) -> list[Any]:
    """MLflow's runs and studies; none if the database or its tables do not exist yet."""
    if not (workspace.results / "mlflow.db").exists():
        return []
    with contextlib.suppress(sqlite3.OperationalError):
        return [*workspace.tracked(), *workspace.tracked("study")]
    return []


def _check(
    workspace: Workspace,
    sweep: Sweep,
    victim: str,
    instant: str,
    before: dict[str, tuple[Any, ...]],
    running_before: int,
    ended: tuple[int, str],
) -> Kill:
    after, runs = _finished(workspace), workspace.runs()
    again = sum(after.get(run_id) != left for run_id, left in before.items())
    history = _history(workspace)
    points = [(run_id, key, step) for run_id, key, step, _ in history]
    stored = {(run_id, key, step): value for run_id, key, step, value in history}
    whole = sum(_is_whole(run.folder.run_id, run.result, stored) for run in runs)
    running = sum(tracked.status == "RUNNING" for tracked in _tracked(workspace))
    doubles = sum(count - 1 for count in Counter(points).values())
    wrong = [] if ended[0] == 0 else [f"the resume ended with {ended[0]}: {ended[1][-600:]}"]
    if [run.config["seed"] for run in runs] != list(range(sweep.runs)):
        wrong.append("not every seed once")
    counts = {
        f"{len(after)} finished": len(after) != sweep.runs,
        f"{again} done again": again > 0,
        f"{running} left RUNNING": running > 0,
        f"{doubles} points twice": doubles > 0,
        f"{whole} with whole metrics": whole != sweep.runs,
    }
    wrong += [text for text, bad in counts.items() if bad]
    try:
        check_consistent(workspace)
    except (AssertionError, sqlite3.OperationalError) as error:
        wrong.append(str(error).partition("\n")[0] or "inconsistent")
    return Kill(
        victim,
        instant,
        len(before),
        running_before,
        len(after),
        again,
        running,
        doubles,
        whole,
        tuple(wrong),
    )


def _history(workspace: Workspace) -> list[tuple[str, str, int, float]]:
    """Every metric point of MLflow's active runs: evenbench's run id, key, step, value."""
    query = (
        "select t.value, m.key, m.step, m.value from metrics m join runs r on r.run_uuid = m.run_uuid "
        "join tags t on t.run_uuid = m.run_uuid and t.key = 'run_id' where r.lifecycle_stage = 'active'"
    )
    with (
        contextlib.suppress(sqlite3.OperationalError),  # without tables, all metrics are reported as missing
        contextlib.closing(sqlite3.connect(workspace.results / "mlflow.db")) as database,
    ):
        return list(database.execute(query))
    return []


def _is_whole(run_id: str, result: dict[str, Any], stored: dict[tuple[str, str, int], float]) -> bool:
    """Whether MLflow has exactly each metric of each epoch of a result and its final metrics."""
    expected = {
        (run_id, key, int(epoch["epoch"])): value
        for epoch in result.get("epochs", ())
        for key, value in epoch["metrics"].items()
    }
    steps = {key for _, key, _ in expected}
    expected |= {(run_id, k, 0): v for k, v in result.get("metrics", {}).items() if k not in steps}
    return bool(expected) and expected == {at: value for at, value in stored.items() if at[0] == run_id}


@contextlib.contextmanager
def new_workspace(template: Path | None) -> Iterator[Workspace]:
    """An empty workspace, deleted afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="kills-") as name,
        cleanup(Workspace(Path(name), template)) as workspace,
    ):
        yield workspace


def measure_kills(kills: int = 50, runs: int = 30, seed: int = 0, framework: str = "torch") -> Report:
    """Kill sweeps, alternating between the victims."""
    sweep, rng, outcomes = Sweep(framework, runs), random.Random(seed), []
    for number in range(kills):
        # an empty cache, so that the store is created from scratch
        with (
            new_workspace(None) as workspace,
            patch.dict(os.environ, {user_cache.VARIABLE: str(workspace.folder / "cache")}),
        ):
            outcomes.append(kill_once(workspace, sweep, VICTIMS[number % len(VICTIMS)], rng))
        kill = outcomes[-1]
        say(f"{number + 1}: {kill.victim} {kill.instant} {'; '.join(kill.wrong) or 'ok'}")
    values = {"runs": runs, "seed": seed, "kills": [plain(kill) for kill in outcomes]}
    return Report(values, (_table(outcomes, runs),))


def _table(kills: Sequence[Kill], runs: int) -> Table:
    columns = (
        *("", "killed", "at", "finished before", "RUNNING before", "finished after", "done again"),
        *("RUNNING after", "points twice", "whole metrics", "wrong"),
    )
    rows = tuple(
        (
            *(number, kill.victim, kill.instant, kill.finished_before, kill.running_before),
            *(kill.finished_after, kill.again, kill.running, kill.doubles, kill.whole),
            "; ".join(kill.wrong) or "-",
        )
        for number, kill in enumerate(kills, start=1)
    )
    bad = sum(bool(kill.wrong) for kill in kills)
    note = f"{len(kills)} kills, {bad} of them with errors afterwards."
    return Table(f"A sweep of {runs} runs, two at a time, killed and resumed", columns, rows, (note,))


def main() -> int:
    """The command line; the exit status is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description="Sweeps that are killed at random instants and resumed.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--kills", type=int, default=50, help="default: 50")
    parser.add_argument("--runs", type=int, default=30, help="of a sweep; default: 30")
    parser.add_argument("--seed", type=int, default=0, help="of the instants; default: 0")
    parser.add_argument("--framework", choices=("torch", "faulty"), default="torch")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    report = measure_kills(**options)
    print(report.to_json() if as_json else report.markdown())
    return int(any(kill["wrong"] for kill in report.values["kills"]))


if __name__ == "__main__":
    sys.exit(main())
