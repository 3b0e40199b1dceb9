"""Sweeps that are killed at random instants and asked for again: is everything there, and once?

    python -m tests.bench.kills [--json] [--kills 50] [--runs 30] [--seed 0] [--framework torch]

Each line is a fresh folder and a sweep of 30 runs with two workers, killed once, by SIGKILL: the parent
(`parent`), one worker (`worker`), or all processes at once (`all`). For `copy` all processes are stopped, the
results folder is copied as it lies there, MLflow's database and its log included, and the end of the youngest
event file is torn off, as a loss of power may leave it; the sweep then goes on in the copy. The instant is a
random number of seconds after the start, or comes at a random number of epochs that were written down. Then
the same command is given again, now and then at once, while workers of the killed one may still live.

After that every run must be finished, once, with what was finished before left as it was; MLflow must have
one run for each, none of them RUNNING, and every metric of every epoch once, with the value in result.json.
tests/system/test_kills.py does a few of these in the suite.
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
START_S = 10.0  # of a command, about, until its last run ends; random instants lie within
TORN = 60  # bytes at the end of a file that a loss of power takes, at most


@dataclass(frozen=True)
class Sweep:
    """What is killed: so many seeds in a framework, `torch` or the slow one of tests/support/faulty."""

    framework: str
    runs: int

    def start(self, workspace: Workspace) -> Command:
        """Give the command."""
        asked = (f"seed=range({self.runs})", f"train.epochs={EPOCHS}", "workers=2")
        if self.framework == "torch":
            return workspace.start("-m", *TORCH_SWEEP, *asked)
        workspace.plant({"*": "slow"})
        return workspace.start("-m", *FAULTY_SWEEP, *asked)


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it; `wrong` says what must not be. `instant`: when, in words."""

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


def kill_once(workspace: Workspace, sweep: Sweep, victim: str, chance: random.Random) -> Kill:
    """Start a sweep in an empty place, kill it, resume it, and look at what is there."""
    process = sweep.start(workspace)
    instant = _wait(workspace, sweep, process, chance)
    _strike(workspace, process, victim, chance)
    end(process)
    if victim != "worker" and chance.random() < 0.5:
        wait_until(lambda: not workspace.processes())
    before = _finished(workspace)
    running_before = sum(tracked.status == "RUNNING" for tracked in _tracked(workspace))
    status, printed = end(sweep.start(workspace))
    wait_until(lambda: not workspace.processes())
    return _judge(workspace, sweep, victim, instant, before, running_before, (status, printed))


def _wait(workspace: Workspace, sweep: Sweep, process: Command, chance: random.Random) -> str:
    """Let the sweep come to a random instant, or to its end if that is earlier."""
    if chance.random() < 0.3:
        after_s = chance.uniform(0.1, START_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after_s)
        return f"{after_s:.2f} s"
    epochs = chance.randrange(sweep.runs * EPOCHS)
    while process.poll() is None and _epochs(workspace) < epochs:
        time.sleep(0.005)
    time.sleep(chance.uniform(0.0, 0.1))
    return f"{epochs} epochs"


def _epochs(workspace: Workspace) -> int:
    found = 0
    for path in workspace.results.glob("runs/*/events.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # it was set aside
            found += path.read_bytes().count(b'"epoch",')
    return found


def _strike(workspace: Workspace, process: Command, victim: str, chance: random.Random) -> None:
    if victim == "parent":
        process.kill()
    elif victim == "worker":
        workers = [pid for pid in workspace.processes() if pid != process.pid]
        if workers:  # there may be none yet, or no more
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)
    elif victim == "all":
        _signal(workspace, signal.SIGKILL)
    else:
        _signal(workspace, signal.SIGSTOP)
        copy = workspace.folder / "copy"
        if workspace.results.exists():
            shutil.copytree(workspace.results, copy)
            _tear(copy, chance)
        _signal(workspace, signal.SIGKILL)
        wait_until(lambda: not workspace.processes())
        if copy.exists():
            workspace.results.rename(workspace.folder / "lost")
            copy.rename(workspace.results)


def _signal(workspace: Workspace, number: int) -> None:
    for pid in workspace.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _tear(results: Path, chance: random.Random) -> None:
    """Take the end off the youngest event file of a run that has not ended."""
    young = [
        path for path in results.glob("runs/*/events.jsonl") if not path.with_name("result.json").exists()
    ]
    if young:
        path = max(young, key=lambda path: path.stat().st_mtime_ns)
        os.truncate(path, max(0, path.stat().st_size - chance.randrange(TORN)))


def _finished(workspace: Workspace) -> dict[str, tuple[Any, ...]]:
    """The finished runs, with what must stay as it is."""
    return {
        run.folder.run_id: (run.events, run.result, run.attempts)
        for run in workspace.runs()
        if run.status == "finished"
    }


def _tracked(workspace: Workspace) -> list[Any]:
    """MLflow's runs and studies; none where the database is not there, or has no tables yet."""
    if not (workspace.results / "mlflow.db").exists():
        return []
    with contextlib.suppress(sqlite3.OperationalError):
        return [*workspace.tracked(), *workspace.tracked("study")]
    return []


def _judge(
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
    known = {(run_id, key, step): value for run_id, key, step, value in history}
    whole = sum(_is_whole(run.folder.run_id, run.result, known) for run in runs)
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
    """Every metric point of MLflow's active runs: our run's id, key, step, value."""
    query = (
        "select t.value, m.key, m.step, m.value from metrics m join runs r on r.run_uuid = m.run_uuid "
        "join tags t on t.run_uuid = m.run_uuid and t.key = 'run_id' where r.lifecycle_stage = 'active'"
    )
    with (
        contextlib.suppress(sqlite3.OperationalError),  # the resume made no tables: all will be said to lack
        contextlib.closing(sqlite3.connect(workspace.results / "mlflow.db")) as database,
    ):
        return list(database.execute(query))
    return []


def _is_whole(run_id: str, result: dict[str, Any], known: dict[tuple[str, str, int], float]) -> bool:
    """Whether MLflow has each metric of each epoch of a result, and its final ones, and nothing else."""
    expected = {
        (run_id, key, int(epoch["epoch"])): value
        for epoch in result.get("epochs", ())
        for key, value in epoch["metrics"].items()
    }
    steps = {key for _, key, _ in expected}
    expected |= {(run_id, k, 0): v for k, v in result.get("metrics", {}).items() if k not in steps}
    return bool(expected) and expected == {at: value for at, value in known.items() if at[0] == run_id}


@contextlib.contextmanager
def new_workspace(template: Path | None) -> Iterator[Workspace]:
    """An empty place; nothing of it is left."""
    with (
        tempfile.TemporaryDirectory(prefix="kills-") as name,
        cleanup(Workspace(Path(name), template)) as workspace,
    ):
        yield workspace


def measure_kills(kills: int = 50, runs: int = 30, seed: int = 0, framework: str = "torch") -> Report:
    """So many kills, the victims by turns."""
    sweep, chance, found = Sweep(framework, runs), random.Random(seed), []
    for number in range(kills):
        # an empty cache, so that the store is made from nothing
        with (
            new_workspace(None) as workspace,
            patch.dict(os.environ, {user_cache.VARIABLE: str(workspace.folder / "cache")}),
        ):
            found.append(kill_once(workspace, sweep, VICTIMS[number % len(VICTIMS)], chance))
        say(f"{number + 1}: {found[-1].victim} {found[-1].instant} {'; '.join(found[-1].wrong) or 'well'}")
    values = {"runs": runs, "seed": seed, "kills": [plain(kill) for kill in found]}
    return Report(values, (_table(found, runs),))


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
    note = f"{len(kills)} kills, {bad} of them with anything wrong afterwards."
    return Table(f"A sweep of {runs} runs, two at a time, killed and resumed", columns, rows, (note,))


def main() -> int:
    """The command line; the status is 1 where anything was wrong."""
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
