"""The leaderboard: runs that differ only in seed and repeat become one row, with mean and spread."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from harness.core.machine.statistics import median
from harness.shell.reports.axes import axes
from harness.shell.reports.tables import plain_table, screen
from harness.shell.runs.records import Outcome

SCORES = ("test/accuracy", "test/r2")
DISTURBED_MARK = "*"  # after a time that other work on the machine disturbed


@dataclass(frozen=True)
class Row:
    """One row: `axes` describe the setting, the rest are its results. Times are medians over runs.

    `share` is the share of the device's matrix limit; `disturbed` counts the runs whose timing was disturbed
    by other work on the machine.
    """

    axes: dict[str, str]
    runs: int
    failed: int
    pruned: int
    score: str
    score_mean: float
    score_deviation: float
    step_ms: float
    samples_per_second: float
    share: float
    compile_s: float
    peak_mb: float
    disturbed: int = 0


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Group outcomes into rows, best first within each model and data set."""
    unsorted = [_row(values, group) for values, group in settings(outcomes)]
    return sorted(unsorted, key=lambda row: (*_network(row), _last_if_nan(row.step_ms)))


def settings(outcomes: Sequence[Outcome]) -> list[tuple[dict[str, str], list[Outcome]]]:
    """Group the outcomes by their axes: those that differ only in seed and repeat are together."""
    groups: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for outcome, values in zip(outcomes, axes(outcome.config for outcome in outcomes), strict=True):
        groups.setdefault(tuple(values.items()), []).append(outcome)
    return [(dict(values), group) for values, group in groups.items()]


def rows_as_json(outcomes: Sequence[Outcome]) -> str:
    """Format the rows as a JSON list; unknown numbers are null."""
    plain = [asdict(row) for row in rows(outcomes)]
    return json.dumps([{k: None if _is_nan(v) else v for k, v in row.items()} for row in plain], indent=1)


def print_leaderboard(outcomes: Sequence[Outcome]) -> None:
    """Print the table, failures, and how to see more. A table that is too wide is split by network."""
    console = screen()
    all_rows = rows(outcomes)

    def is_too_wide(candidate: Table) -> bool:
        width = console.measure(candidate, options=console.options.update(width=1000)).maximum
        return width > console.width

    whole = table(all_rows, "Leaderboard", all_rows)
    if not is_too_wide(whole):
        console.print(whole)
    else:
        left_out = ["model", "data"]
        left_out += ["share"] * is_too_wide(table(all_rows, "", all_rows, left_out))
        for model, data in dict.fromkeys(map(_network, all_rows)):
            part = [row for row in all_rows if _network(row) == (model, data)]
            console.print(table(part, f"{model} on {data}", all_rows, left_out))
    disturbed = sum(row.disturbed for row in all_rows)
    if disturbed:
        runs = sum(row.runs - row.failed - row.pruned for row in all_rows)
        console.print(
            f"{DISTURBED_MARK} other work disturbed the timing of {disturbed} of {runs} runs", markup=False
        )
    config = outcomes[0].config
    option = "" if config.results_dir == "results" else f" --results-dir {shlex.quote(config.results_dir)}"
    for outcome in (outcome for outcome in outcomes if outcome.failed):
        error = outcome.result.get("error") or {}
        text = f"{outcome.result['status']}: {outcome.config.label()}: {error.get('message', '')}"
        console.print(text, markup=False, soft_wrap=True)
    console.print(f"Browse and compare: evenbench ui{option}", markup=False, soft_wrap=True)


def table(part: Sequence[Row], title: str, all_rows: Sequence[Row], left_out: Sequence[str] = ()) -> Table:
    """Build a table of some of the rows, with columns wide enough for all of them.

    With `left_out` columns, space is short: headers are on two lines and columns closer together.
    """
    result = plain_table(title)
    result.padding = (0, 1, 0, 0) if left_out else (0, 1)
    names = [name for name in all_rows[0].axes if name not in left_out]
    for name in names:
        title = name.rpartition(".")[2]
        width = max(len(title), *(len(row.axes[name]) for row in all_rows))
        result.add_column(title, min_width=width, overflow="fold")
    scores = {row.score for row in part} - {""}
    mixed = len(scores) > 1
    score = "test score" if mixed else "".join(scores) or "test score"
    columns = (score, "step ms", "samples/s", "share", "compile s", "peak MB", "runs")
    shares = "share" not in left_out and any(not math.isnan(row.share) for row in all_rows)
    shown = [number for number, name in enumerate(columns) if shares or name != "share"]
    for number in shown:
        name = columns[number]
        header = name.replace(" ", "\n").replace("s/s", "s\n/s") if left_out else name
        width = max(*map(len, header.split("\n")), *(len(_cells(row, mixed)[number]) for row in all_rows))
        result.add_column(header, justify="right", min_width=width, overflow="fold")
    above: Row | None = None
    for row in part:
        if above is not None and _network(above) != _network(row):
            result.add_row()
        cells = _cells(row, mixed)
        result.add_row(*(row.axes[name] for name in names), *(cells[number] for number in shown))
        above = row
    return result


def _network(row: Row) -> tuple[str, str]:
    """Return model and data, on which frameworks are compared."""
    return row.axes["model"], row.axes["data"]


def _cells(row: Row, mixed: bool) -> list[str]:
    """Format the numbers of a row; `mixed`: scores of several kinds share the column, so each has its
    name."""
    kind = f"{row.score.rpartition('/')[2]} " if mixed else ""
    spread = "" if math.isnan(row.score_deviation) else f" ± {row.score_deviation:.3f}"
    counts = ((row.failed, "failed"), (row.pruned, "pruned"))
    others = [f"{count} {status}" for count, status in counts if count]
    runs = str(row.runs) + (f" ({', '.join(others)})" if others else "")
    numbers = (
        (row.score_mean, f"{kind}{row.score_mean:.3f}{spread}"),
        (row.step_ms, f"{row.step_ms:.3f}" + DISTURBED_MARK * bool(row.disturbed)),
        (row.samples_per_second, f"{row.samples_per_second:,.0f}"),
        (row.share, f"{row.share:.1%}"),
        (row.compile_s, f"{row.compile_s:.2f}"),
        (row.peak_mb, f"{row.peak_mb:,.0f}"),
    )
    return [*("-" if math.isnan(value) else text for value, text in numbers), runs]


def _row(axes: dict[str, str], group: Sequence[Outcome]) -> Row:
    finished = [outcome.result["metrics"] for outcome in group if outcome.finished]
    score = next((name for name in SCORES if finished and name in finished[0]), "")
    scores = [metrics[score] for metrics in finished] if score else []
    failed = sum(outcome.failed for outcome in group)

    def median_of(name: str) -> float:
        return median([metrics[name] for metrics in finished])

    return Row(
        axes=axes,
        runs=len(group),
        failed=failed,
        pruned=len(group) - len(finished) - failed,
        score=score,
        score_mean=statistics.fmean(scores) if scores else math.nan,
        score_deviation=statistics.stdev(scores) if len(scores) > 1 else math.nan,
        step_ms=median_of("speed/step_ms"),
        samples_per_second=median_of("speed/samples_per_second"),
        share=median([m["speed/share_of_limit"] for m in finished if "speed/share_of_limit" in m]),
        # a cached program compiles nothing, so the maximum is the time of a compilation
        compile_s=max((metrics["time/compile_s"] for metrics in finished), default=math.nan),
        peak_mb=median_of("memory/peak_mb"),
        disturbed=sum(outcome.finished and _is_disturbed(outcome) for outcome in group),
    )


def _is_disturbed(outcome: Outcome) -> bool:
    # absent from results of earlier versions
    return bool((outcome.result.get("timing") or {}).get("disturbed"))


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _last_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value
