"""Where the time of a run goes, from the start of a cold process to the last number: a row for each setting.

The steady steps are what frameworks are compared by; whoever trains one small network waits for all the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.core.machine import statistics
from harness.shell.reports.leaderboard import settings
from harness.shell.reports.tables import plain_table, screen
from harness.shell.runs.records import Outcome

COLUMNS = {
    "import": "import_s",
    "data": "data_s",
    "build": "build_s",
    "compile": "compile_s",
    "epochs": "train_s",
    "evaluation": "evaluate_s",
}
"""Headings, and what a result's `timing` calls the phase."""
COLD = "compile_s"  # of runs that found their program compiled already it is 0, which is not what it costs


@dataclass(frozen=True)
class Row:
    """A setting's phases in seconds, medians over its runs; `cold_s` is their sum, what a run takes in
    a process of its own. `runs` are those that finished."""

    axes: dict[str, str]
    runs: int
    seconds: dict[str, float]
    cold_s: float


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Runs that differ in seed and repeat alone are one row; in the order in which they first appear."""
    found = []
    for axes, group in settings([outcome for outcome in outcomes if outcome.finished]):
        timings = [outcome.result["timing"] for outcome in group]
        seconds = {name: _seconds(key, timings) for name, key in COLUMNS.items()}
        found.append(Row(axes, len(group), seconds, sum(seconds.values())))
    return found


def print_phases(outcomes: Sequence[Outcome], as_json: bool) -> None:
    """Print the table, or its rows as JSON."""
    found = rows(outcomes)
    if as_json:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return
    console = screen()
    names = list(found[0].axes) if found else []
    table = plain_table("Seconds, from a cold start")
    for name in names:
        table.add_column(name.rpartition(".")[2], overflow="fold")
    for name in (*COLUMNS, "all", "runs"):
        table.add_column(name, justify="right")
    for row in found:
        numbers = (f"{value:.2f}" for value in (*row.seconds.values(), row.cold_s))
        table.add_row(*(row.axes[name] for name in names), *numbers, str(row.runs))
    console.print(table)


def _seconds(key: str, timings: Sequence[Mapping[str, Any]]) -> float:
    values = [float(timing[key]) for timing in timings]
    return max(values) if key == COLD else statistics.median(values)
