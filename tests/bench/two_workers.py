"""Speed-up of a sweep with two workers, one thread each, over one worker.

    python -m tests.bench.two_workers [--json] [--workers 1,2] [--runs 16] [--epochs 300] [--repeats 3]

A sweep over seeds of a feed-forward network on digits in PyTorch, each worker with one thread on its own
core. Runs last a few seconds, like most interactive runs; the start of a command, which more workers do not
shorten, is included. Commands run in turns. `whole` are whole commands, including imports and exit; `runs` is
the time from the start of the first run to the end of the last one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.core.machine import statistics
from tests.bench.report import Report, Table, command, plain, say
from tests.bench.watched import Watched, watch

GOAL = 1.7


@dataclass(frozen=True)
class Taken:
    """A command: in total, and from the start of its first run to the end of its last; a step in ms."""

    whole: Watched
    runs_s: float
    step_ms: float


def measure_workers(workers: str = "1,2", runs: int = 16, epochs: int = 300, repeats: int = 3) -> Report:
    """Measure the sweep with each number of workers, compared with the first number."""
    counts = [int(count) for count in workers.split(",")]
    measured: dict[int, list[Taken]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory(prefix="two-workers-") as name:
        for repeat in range(repeats):
            for count in counts[:: -1 if repeat % 2 else 1]:
                say(f"{count} workers, repeat {repeat + 1}")
                measured[count].append(_sweep(count, runs, epochs, Path(name, f"{count}-{repeat}")))
    values = {
        "goal": GOAL,
        "runs": runs,
        "workers": {n: [plain(each) for each in taken] for n, taken in measured.items()},
    }
    return Report(values, (_table(measured, runs),))


def _sweep(workers: int, runs: int, epochs: int, place: Path) -> Taken:
    arguments = ("framework=torch", f"seed=range({runs})", f"train.epochs={epochs}", "limit=off")
    whole = watch(("harness", "-m", *arguments, f"workers={workers}", "pin=true"), place)
    folders = list((place / "results/runs").iterdir())
    started = min(json.loads((f / "events.jsonl").open().readline())["time_ms"] / 1e3 for f in folders)
    ended = max((folder / "result.json").stat().st_mtime for folder in folders)
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    step_ms = statistics.median([result["metrics"]["speed/step_ms"] for result in results])
    return Taken(whole, ended - started, step_ms)


def _table(measured: dict[int, list[Taken]], runs: int) -> Table:
    columns = ("workers", "whole, s", "times as fast", "runs, s", "times as fast", "step ms", "workers MB")
    first = next(iter(measured.values()))
    rows = []
    for count, taken in measured.items():
        pairs = list(zip(first, taken, strict=True))
        rows.append(
            (
                count,
                f"{statistics.median([each.whole.wall_s for each in taken]):.1f}",
                f"{statistics.median([a.whole.wall_s / b.whole.wall_s for a, b in pairs]):.2f}",
                f"{statistics.median([each.runs_s for each in taken]):.1f}",
                f"{statistics.median([a.runs_s / b.runs_s for a, b in pairs]):.2f}",
                f"{statistics.median([each.step_ms for each in taken]):.3f}",
                f"{max(each.whole.others_mb for each in taken):,.0f}",
            )
        )
    note = f"Goal: two workers are at least {GOAL:g} times as fast as one."
    return Table(f"A sweep of {runs} runs by the number of its workers", columns, tuple(rows), (note,))


if __name__ == "__main__":
    description = "Speed-up of a sweep with two workers over one worker."
    sys.exit(command(measure_workers, description, workers="1,2", runs=16, epochs=300, repeats=3))
