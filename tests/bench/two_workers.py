"""Whether two workers, a thread each, do a sweep in half the time of one.

    python -m tests.bench.two_workers [--json] [--workers 1,2] [--runs 16] [--epochs 300] [--repeats 3]

A sweep over seeds, a feed-forward network on digits in PyTorch, each worker with one thread on a core of its
own. Runs last a few seconds, as most do that people wait for; the start of a command, which more workers
don't shorten, is measured too. Commands take turns. `whole` are whole commands, imports and exit included;
`runs` is the time from the first run's start to the last one's end.
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
    """One command: as a whole, and from the start of its first run to the end of its last; a step in ms."""

    whole: Watched
    runs_s: float
    step_ms: float


def measure_workers(workers: str = "1,2", runs: int = 16, epochs: int = 300, repeats: int = 3) -> Report:
    """The sweep with each number of workers; they are compared with the first."""
    counts = [int(count) for count in workers.split(",")]
    found: dict[int, list[Taken]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory(prefix="two-workers-") as name:
        for repeat in range(repeats):
            for count in counts[:: -1 if repeat % 2 else 1]:
                say(f"{count} workers, repeat {repeat + 1}")
                found[count].append(_sweep(count, runs, epochs, Path(name, f"{count}-{repeat}")))
    values = {
        "goal": GOAL,
        "runs": runs,
        "workers": {n: [plain(each) for each in taken] for n, taken in found.items()},
    }
    return Report(values, (_table(found, runs),))


def _sweep(workers: int, runs: int, epochs: int, place: Path) -> Taken:
    asked = ("framework=torch", f"seed=range({runs})", f"train.epochs={epochs}", "limit=off")
    whole = watch(("harness", "-m", *asked, f"workers={workers}", "pin=true"), place)
    folders = list((place / "results/runs").iterdir())
    started = min(json.loads((f / "events.jsonl").open().readline())["time_ms"] / 1e3 for f in folders)
    ended = max((folder / "result.json").stat().st_mtime for folder in folders)
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    step_ms = statistics.median([result["metrics"]["speed/step_ms"] for result in results])
    return Taken(whole, ended - started, step_ms)


def _table(found: dict[int, list[Taken]], runs: int) -> Table:
    columns = ("workers", "whole, s", "times as fast", "runs, s", "times as fast", "step ms", "workers MB")
    first = next(iter(found.values()))
    rows = []
    for count, taken in found.items():
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
    note = f"Two workers are to be at least {GOAL:g} times as fast as one."
    return Table(f"A sweep of {runs} runs by the number of its workers", columns, tuple(rows), (note,))


if __name__ == "__main__":
    description = "Whether two workers do a sweep in half the time of one."
    sys.exit(command(measure_workers, description, workers="1,2", runs=16, epochs=300, repeats=3))
