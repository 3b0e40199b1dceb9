"""Where the time of a run goes, from the cold start of a process to the last number: a row per setting.

Frameworks are compared by their steady steps, but a user who trains one small network waits for all the rest.
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
"""Headers, and the keys of a result's `timing`."""
COLD = "compile_s"  # 0 in runs whose program was already compiled, so the maximum counts


@dataclass(frozen=True)
class Row:
    """A setting's phases in seconds, medians over its runs; `cold_s` is their sum, the time of a run in a new
    process. `runs` counts the finished ones."""

    axes: dict[str, str]
    runs: int
    seconds: dict[str, float]
    cold_s: float


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Group runs that differ only in seed and repeat into rows, in the order of their first appearance."""
    table_rows = []
    for axes, group in settings([outcome for outcome in outcomes if outcome.finished]):
        timings = [outcome.result["timing"] for outcome in group]
        seconds = {name: _seconds(key, timings) for name, key in COLUMNS.items()}
        table_rows.append(Row(axes, len(group), seconds, sum(seconds.values())))
    return table_rows


def print_phases(outcomes: Sequence[Outcome], as_json: bool) -> None:
    """Print the table, or its rows as JSON."""
    table_rows = rows(outcomes)
    if as_json:
        print(json.dumps([asdict(row) for row in table_rows], indent=1))
        return
    names = list(table_rows[0].axes) if table_rows else []
    table = plain_table("Seconds, from a cold start")
    for name in names:
        table.add_column(name.rpartition(".")[2], overflow="fold")
    for name in (*COLUMNS, "all", "runs"):
        table.add_column(name, justify="right")
    for row in table_rows:
        numbers = (f"{value:.2f}" for value in (*row.seconds.values(), row.cold_s))
        table.add_row(*(row.axes[name] for name in names), *numbers, str(row.runs))
    screen().print(table)


def _seconds(key: str, timings: Sequence[Mapping[str, Any]]) -> float:
    values = [float(timing[key]) for timing in timings]
    return max(values) if key == COLD else statistics.median(values)
