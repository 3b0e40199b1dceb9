"""Trials of one sweep in warm workers, with the real command, compared with a hand-written sweep.

    python -m tests.bench.warm_trials [--json] [--trials 8] [--repeats 3] [--only torch]

Each trial is 10 epochs on digits, logged to MLflow on SQLite. Two figures are derived from whole commands,
including imports and exit: `a further trial` is (command of n trials - command of one trial) / (n - 1), the
cost of one more seed; `after the first` is (end of the command - end of its first trial) / (n - 1), which
includes the command's exit. The commands run in turns, so that a busy machine affects both. The naive sweep
(tests/bench/naive/) is Hydra's own launcher, a plain script and MLflow, with all trials in one process.

The time breakdown comes from the runs' files (events.jsonl, result.json) and from timed functions of the
shell (tests/bench/traced.py).
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.report import Report, Table, command, plain, say
from tests.bench.traced import Span
from tests.support.paths import ROOT

GOAL_S = 0.5
FRAMEWORKS = ("torch", "keras", "keras_jax")
EPOCHS = 10
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
THREADS_TF = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC")


@dataclass(frozen=True)
class Command:
    """Cost of a command in seconds: wall-clock time and processor time, including its children."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Cost:
    """Medians over the repeats: commands of all trials, and the cost of each trial after the first."""

    command_s: float
    further_s: float
    further_cpu_s: float

    @classmethod
    def of(cls, one: Sequence[Command], many: Sequence[Command], trials: int) -> Cost:
        """Derive the cost from commands of one trial and of `trials`."""
        pairs = list(zip(one, many, strict=True))
        further = statistics.median((b.wall_s - a.wall_s) / (trials - 1) for a, b in pairs)
        further_cpu = statistics.median((b.cpu_s - a.cpu_s) / (trials - 1) for a, b in pairs)
        return cls(statistics.median(command.wall_s for command in many), further, further_cpu)


@dataclass(frozen=True)
class Sweep:
    """A framework's sweep, and the naive one."""

    framework: str
    ours: Cost
    after_first_s: float
    naive: Cost


def measure_sweeps(trials: int = 8, repeats: int = 3, only: str = "") -> Report:
    """Measure every framework's sweep and its naive counterpart."""
    sweeps, where = [], {}
    with tempfile.TemporaryDirectory(prefix="warm-trials-") as name:
        for framework in [f for f in FRAMEWORKS if only in f]:
            sweep, parts = measure_sweep(framework, trials, repeats, Path(name, framework))
            sweeps.append(sweep)
            where[framework] = parts
    values = {"goal_s": GOAL_S, "sweeps": [plain(sweep) for sweep in sweeps], "where": where}
    return Report(values, (_table(sweeps, trials), _where_table(where, trials)))


def measure_sweep(framework: str, trials: int, repeats: int, folder: Path) -> tuple[Sweep, dict[str, float]]:
    """A framework's figures, and the time breakdown of its sweeps (medians, s)."""
    ours: dict[int, list[Command]] = {1: [], trials: []}
    naive: dict[int, list[Command]] = {1: [], trials: []}
    after, parts = [], []
    for repeat in range(repeats):
        composing = []
        for count in ours:
            say(f"{framework} {count} trials, repeat {repeat + 1}")
            place = folder / f"{repeat}-{count}"
            ours[count].append(_ours(framework, count, place))
            naive[count].append(_naive(framework, count, place / "naive"))
            composing.append(composing_s(spans_of(place)))
        times = timeline(place)  # of the last command, which had all trials
        times["trial: Hydra composes and checks"] = (composing[1] - composing[0]) / (trials - 1)
        after.append(times.pop("after the first trial") / (trials - 1))
        parts.append(times)
    costs = [Cost.of(each[1], each[trials], trials) for each in (ours, naive)]
    sweep = Sweep(framework, costs[0], statistics.median(after), costs[1])
    return sweep, {label: statistics.median(part[label] for part in parts) for label in parts[0]}


def command_of(framework: str, trials: int, place: Path) -> float:
    """Seconds of one command of a number of trials, with its results below `place`."""
    return _ours(framework, trials, place).wall_s


def _ours(framework: str, trials: int, place: Path) -> Command:
    arguments = [f"framework={framework}", f"seed=range({trials})", f"train.epochs={EPOCHS}"]
    place.mkdir(parents=True)
    return _timed(["tests.bench.traced", "spans.json", "-m", *arguments], place)


def _naive(framework: str, trials: int, place: Path) -> Command:
    script = "train_torch" if framework == "torch" else "train_keras"
    seeds = ",".join(map(str, range(trials)))
    place.mkdir(parents=True)
    arguments = ["-m", f"seed={seeds}", f"epochs={EPOCHS}"]
    backend = {"keras": "tensorflow", "keras_jax": "jax"}.get(framework, "")
    return _timed([f"tests.bench.naive.{script}", *arguments], place, {"KERAS_BACKEND": backend})


def _timed(module: Sequence[str], place: Path, more: dict[str, str] | None = None) -> Command:
    """Cost of `python -m ...` in a folder; raises RuntimeError if it fails."""
    cpu_s, start = _children_s(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *module],
        cwd=place,
        env=environment() | (more or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    taken = Command(time.perf_counter() - start, _children_s() - cpu_s)
    if done.returncode:
        raise RuntimeError(f"{' '.join(module)} failed\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return taken


def environment() -> dict[str, str]:
    """Environment of both sides: one thread, no output that is not read."""
    threads = dict.fromkeys((*THREADS, *THREADS_TF), "1")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    return os.environ | threads | quiet


def _children_s() -> float:
    """Processor time of all children that have ended, including their children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def timeline(place: Path) -> dict[str, float]:
    """Time breakdown of a sweep in seconds: parts that happen once, then medians of its later trials."""
    spans = spans_of(place)
    runs = sorted(
        (run_times(path) for path in (place / "results/runs").iterdir()), key=lambda run: run["started"]
    )
    of = {label: [end - start for name, _, start, end in spans if name == label] for label, *_ in spans}
    ends = {label: end for label, _, _, end in spans}
    times = {
        "once: import of the shell": of["import of the shell"][0],
        "once: Hydra composes and checks": composing_s(spans),
        "once: data, shapes, run ids": sum(of["prepare"]),
        "once: wait for MLflow": sum(of["wait for MLflow"]),
        "once: wait for the worker": of["wait for workers"][0],
        "once: first trial": runs[0]["ended"] - runs[0]["asked"],
        "once: end of worker": sum(of["end of workers"]),
        "once: last logging": sum(of["last logging"]),
        "once: leaderboard": sum(of["leaderboard"]),
    }
    later = runs[1:]
    each = [
        {
            "trial: handed over": run["started"] - before["ended"],
            "trial: data, program, weights": run["set_up"],
            "trial: training": run["training"],
            "trial: validation, events": run["epochs"] - run["training"],
            "trial: test, files": run["ended"] - run["started"] - run["set_up"] - run["epochs"],
        }
        for before, run in zip(runs, later, strict=False)
    ]
    times |= {label: statistics.median(trial[label] for trial in each) for label in each[0]}
    # a run that ended before its logging began is logged as a whole
    parts = ("MLflow begin", "MLflow epochs", "MLflow finish", "MLflow whole")
    in_thread = sum(sum(of.get(label, ())) for label in parts)
    times["in parallel: MLflow's thread, a trial"] = in_thread / len(runs)
    times["after the first trial"] = ends["main"] - runs[0]["ended"]
    return times


def spans_of(place: Path) -> list[Span]:
    spans: list[Span] = json.loads((place / "spans.json").read_text())
    return spans


def composing_s(spans: Sequence[Span]) -> float:
    """Seconds from the end of the imports until the session gets the checked configurations."""
    imported = next(end for label, _, _, end in spans if label == "import of the shell")
    return next(start for label, _, start, _ in spans if label == "execute") - imported


def run_times(folder: Path) -> dict[str, float]:
    """A run's instants (Unix time in s) and durations (s)."""
    result = json.loads((folder / "result.json").read_text())
    events: list[dict[str, Any]] = [json.loads(line) for line in (folder / "events.jsonl").open()]
    started, last = events[0]["time_ms"] / 1e3, events[-1]["time_ms"] / 1e3
    timing = result["timing"]
    set_up = timing["data_s"] + timing["build_s"] + timing.get("first_epoch_s", 0.0)
    return {
        "asked": (folder / "job.json").stat().st_mtime,
        "started": started,
        "ended": (folder / "result.json").stat().st_mtime,
        "set_up": set_up,
        "training": sum(epoch["train_s"] for epoch in result["epochs"]),
        "epochs": last - started - set_up,
    }


def _table(sweeps: Sequence[Sweep], trials: int) -> Table:
    columns = (
        "framework",
        f"command of {trials}, s",
        "a further trial, s",
        "of processors, s",
        "after the first, s/trial",
        f"< {GOAL_S} s",
        f"naive: command of {trials}, s",
        "naive: a further trial, s",
        "of processors, s",
    )
    cells = [
        (
            sweep.framework,
            f"{sweep.ours.command_s:.2f}",
            f"{sweep.ours.further_s:.3f}",
            f"{sweep.ours.further_cpu_s:.3f}",
            f"{sweep.after_first_s:.3f}",
            "yes" if max(sweep.ours.further_s, sweep.after_first_s) < GOAL_S else "no",
            f"{sweep.naive.command_s:.2f}",
            f"{sweep.naive.further_s:.3f}",
            f"{sweep.naive.further_cpu_s:.3f}",
        )
        for sweep in sweeps
    ]
    title = f"Warm trials: {trials} seeds, 10 epochs of digits each, in one sweep with MLflow"
    return Table(title, columns, tuple(cells))


def _where_table(where: dict[str, dict[str, float]], trials: int) -> Table:
    labels = list(next(iter(where.values())))
    rows = [(label, *(f"{1e3 * parts[label]:.0f}" for parts in where.values())) for label in labels]
    return Table(f"Where the time of the {trials} trials goes, ms", ("", *where), tuple(rows))


if __name__ == "__main__":
    description = "Trials of one sweep in warm workers, with the real command, compared with a naive sweep."
    sys.exit(command(measure_sweeps, description, trials=8, repeats=3, only=""))
