"""A sweep of 64 trials compared with a baseline in Lightning, and the growth to 512 trials.

    python -m tests.bench.sweep_64 [--json] [--compare 64] [--trials 8,64,512] [--repeats 3] [--ways ...]

Each trial is a feed-forward network on digits, 10 epochs of batches of 32, on one thread, logged to MLflow on
SQLite; in PyTorch, and where stated in Keras on JAX, the fastest framework for this network. The baseline
(tests/bench/naive/train_lightning.py) is Hydra's multirun with Lightning, its MLflow logger and its
checkpoints, like the widely used template, but without progress bar, model summary and sanity check of the
validation, which would slow it down. Whole commands are compared, including imports and exit, in turns;
ratios are medians over the repeats. evenbench runs in several ways (`--ways "workers=1; workers=2
execution=compiled"`), each a list of overrides. Both sides are scored on the same test split, evenbench after
its last epoch, the baseline with its best checkpoint. Results folders are new each time, but the user's cache
is shared; a note below the table gives the additional time of the first command on a machine, which fills the
cache.

For ways with one worker, the time is broken down by the runs' files and by timed functions of the shell
(tests/bench/traced.py); the parts add up to the whole command. The longer sweeps run with evenbench only. The
memory of the shell and of its workers is sampled.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.machine.statistics import median
from harness.core.storage import user_cache
from tests.bench.report import Report, Table, command, plain, say
from tests.bench.warm_trials import composing_s, run_times, spans_of
from tests.bench.watched import Watched, watch

GOAL = 15.0
WAYS = "workers=1; workers=2; framework=keras_jax workers=1; framework=keras_jax workers=2"
TRIALS = "8,64,512"
USUAL = "Hydra, Lightning, MLflow"
EPOCHS = 10


@dataclass(frozen=True)
class Side:
    """One side of the comparison: its commands, and the test accuracies of all of their trials."""

    commands: list[Watched]
    accuracies: list[float]

    @property
    def wall_s(self) -> float:
        """The median command."""
        return median([command.wall_s for command in self.commands])


def measure_sweep(compare: int = 64, ways: str = WAYS, trials: str = TRIALS, repeats: int = 3) -> Report:
    """Measure the comparison at `compare` trials, and evenbench's sweeps of each of `trials`; 0 or empty
    skips it."""
    tables: list[Table] = []
    values: dict[str, object] = {"goal": GOAL}
    with tempfile.TemporaryDirectory(prefix="sweep-64-") as name:
        folder = Path(name)
        if compare:
            ours = [way.strip() for way in ways.split(";")]
            first = [_ours(ours[-1], 1, folder / f"first-{number}").wall_s for number in range(2)]
            sides, parts = _compare(compare, ours, repeats, folder)
            values |= {"compare": compare, "sides": {name: plain(side) for name, side in sides.items()}}
            values |= {"faster": {way: _faster(sides, way) for way in ours}, "where": parts}
            values |= {"first_command_s": first[0], "second_command_s": first[1]}
            tables.append(_comparison_table(sides, compare, first))
            tables += [_parts_table(way, seconds, compare) for way, seconds in parts.items()]
        counts = sorted(int(count) for count in trials.split(",") if count)
        if counts:
            grown = {count: _ours("", count, folder / f"grown-{count}") for count in counts}
            values["grown"] = {count: plain(command) for count, command in grown.items()}
            tables.append(_grown_table(grown))
    return Report(values, tuple(tables))


def _compare(
    trials: int, ways: Sequence[str], repeats: int, folder: Path
) -> tuple[dict[str, Side], dict[str, dict[str, float]]]:
    """All sides by name, and the time breakdown (medians) of ways with one worker."""
    sides = {name: Side([], []) for name in (*ways, USUAL)}
    parts: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for repeat in range(repeats):
        for number, (name, side) in list(enumerate(sides.items()))[:: -1 if repeat % 2 else 1]:
            place = folder / f"{number}-{repeat}"
            if name == USUAL:
                side.commands.append(_usual(trials, place))
                side.accuracies.extend(_usual_accuracies(place))
            else:
                side.commands.append(_ours(name, trials, place))
                side.accuracies.extend(_our_accuracies(place))
                if dict(text.split("=", 1) for text in name.split()).get("workers", "1") == "1":
                    parts[name].append(where(place, side.commands[-1]))
    medians = {
        way: {label: median([part[label] for part in each]) for label in each[0]}
        for way, each in parts.items()
        if each
    }
    return sides, medians


def _ours(way: str, trials: int, place: Path) -> Watched:
    say(f"ours, {trials} trials {way}")
    framework = () if "framework=" in way else ("framework=torch",)
    arguments = (*framework, f"seed=range({trials})", f"train.epochs={EPOCHS}", *way.split())
    shared = {user_cache.VARIABLE: str(place.parent / "cache")}
    return watch(("tests.bench.traced", "spans.json", "-m", *arguments), place, shared)


def _usual(trials: int, place: Path) -> Watched:
    say(f"baseline, {trials} trials")
    arguments = (f"seed=range({trials})", f"trainer.max_epochs={EPOCHS}")
    return watch(("tests.bench.naive.train_lightning", "-m", *arguments), place)


def _faster(sides: Mapping[str, Side], way: str) -> float:
    """Speed-up of a way over the baseline: the median over the repeats."""
    pairs = zip(sides[way].commands, sides[USUAL].commands, strict=True)
    return median([usual.wall_s / ours.wall_s for ours, usual in pairs])


def _our_accuracies(place: Path) -> list[float]:
    files = (place / "results" / "runs").glob("*/result.json")
    return [json.loads(path.read_text())["metrics"]["test/accuracy"] for path in files]


def _usual_accuracies(place: Path) -> list[float]:
    with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as database:
        rows = database.execute("select value from latest_metrics where key = 'test/acc'").fetchall()
    return [float(value) for (value,) in rows]


def where(place: Path, taken: Watched) -> dict[str, float]:
    """Time breakdown of a command in s; the parts add up to the whole."""
    spans = spans_of(place)
    runs = sorted(map(run_times, (place / "results/runs").iterdir()), key=lambda run: run["started"])
    of: dict[str, list[float]] = {}
    for label, _, start, end in spans:
        of.setdefault(label, []).append(end - start)
    began = next(start for label, _, start, _ in spans if label == "import of the shell")
    over = next(end for label, _, _, end in spans if label == "main")
    handed = (after["started"] - run["ended"] for run, after in itertools.pairwise(runs))
    parts = {
        "start of Python": began - taken.started,
        "import of the shell": of["import of the shell"][0],
        "Hydra composes, everything is checked": composing_s(spans),
        "data, shapes, run ids": sum(of["prepare"]),
        "wait for MLflow's import and store": sum(of["wait for MLflow"]),
        "wait for the worker's import": of["wait for workers"][0],
        "worker: data, programs, weights": sum(run["set_up"] for run in runs),
        "worker: training": sum(run["training"] for run in runs),
        "worker: validation, events": sum(run["epochs"] - run["training"] for run in runs),
        "worker: test, files": sum(
            run["ended"] - run["started"] - run["set_up"] - run["epochs"] for run in runs
        ),
        "from one run to the next": sum(handed),
        "end of the worker": sum(of["end of workers"]),
        "last logging": sum(of["last logging"]),
        "leaderboard": sum(of["leaderboard"]),
        "exit of Python": taken.started + taken.wall_s - over,
    }
    return parts | {"everything else": taken.wall_s - sum(parts.values())}


def _comparison_table(sides: Mapping[str, Side], trials: int, first: Sequence[float]) -> Table:
    columns = (
        "",
        f"{trials} trials, s",
        "a trial, s",
        "times as fast",
        "test accuracy",
        "shell MB",
        "workers MB",
    )
    rows = [
        (
            name if name == USUAL else f"evenbench {name}",
            f"{side.wall_s:.1f}",
            f"{side.wall_s / trials:.3f}",
            "-" if name == USUAL else f"{_faster(sides, name):.1f}",
            _spread(side.accuracies),
            *_peaks(side.commands),
        )
        for name, side in sides.items()
    ]
    notes = (
        f"At least {GOAL:g} times as fast is the goal. Accuracies are mean and deviation over all trials.",
        f"One trial in the last of our ways: {first[0]:.1f} s with an empty cache, {first[1]:.1f} s after.",
    )
    return Table(f"A sweep of {trials} trials compared with the baseline", columns, tuple(rows), notes)


def _parts_table(way: str, parts: Mapping[str, float], trials: int) -> Table:
    whole = sum(parts.values())
    rows = tuple((label, f"{taken:.2f}", f"{taken / whole:.0%}") for label, taken in parts.items())
    return Table(f"Where the time of {trials} trials goes: evenbench {way}", ("", "s", "share"), rows)


def _grown_table(grown: dict[int, Watched]) -> Table:
    columns = ("trials", "s", "s a further trial", "shell MB", "worker MB", "MB a further trial")
    rows: list[tuple[object, ...]] = []
    before, fewer = None, 0
    for count, taken in grown.items():
        further_s = further_mb = "-"
        if before is not None:
            more = count - fewer
            further_s = f"{(taken.wall_s - before.wall_s) / more:.3f}"
            grown_mb = taken.own_mb + taken.others_mb - before.own_mb - before.others_mb
            further_mb = f"{grown_mb / more:+.3f}"
        rows.append((count, f"{taken.wall_s:.1f}", further_s, *_peaks([taken]), further_mb))
        before, fewer = taken, count
    return Table("Our sweep against its length; peaks of resident memory", columns, tuple(rows))


def _peaks(commands: Sequence[Watched]) -> tuple[str, str]:
    own, others = max(each.own_mb for each in commands), max(each.others_mb for each in commands)
    return f"{own:,.0f}", f"{others:,.0f}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {_deviation(values):.4f}"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    description = "A sweep of 64 trials compared with a baseline in Lightning, and its growth to 512 trials."
    sys.exit(command(measure_sweep, description, compare=64, ways=WAYS, trials=TRIALS, repeats=3))
