"""The table at the end: runs that differ only in seed and repeat become one row, with mean and spread."""

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
MARK = "*"  # of a time that is not the program's own alone


@dataclass(frozen=True)
class Row:
    """One line: `axes` say what was run, the rest what came out. Times are medians over runs.

    `share` is that of the device's matrix limit; `disturbed` counts the runs whose timing was disturbed by
    other work on the machine.
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
    found = [_row(values, group) for values, group in settings(outcomes)]
    return sorted(found, key=lambda row: (*_network(row), _last_if_nan(row.step_ms)))


def settings(outcomes: Sequence[Outcome]) -> list[tuple[dict[str, str], list[Outcome]]]:
    """The outcomes by their axes: those that differ in seed and repeat alone are together."""
    groups: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for outcome, values in zip(outcomes, axes(outcome.config for outcome in outcomes), strict=True):
        groups.setdefault(tuple(values.items()), []).append(outcome)
    return [(dict(values), group) for values, group in groups.items()]


def rows_as_json(outcomes: Sequence[Outcome]) -> str:
    """The rows as a JSON list; what is not known is null."""
    plain = [asdict(row) for row in rows(outcomes)]
    known = [{k: None if _is_nan(v) else v for k, v in row.items()} for row in plain]
    return json.dumps(known, indent=1)


def print_leaderboard(outcomes: Sequence[Outcome]) -> None:
    """Print the table, and how to see more; a table for each network if one is wider than the terminal."""
    console = screen()
    found = rows(outcomes)
    whole = table(found, "Leaderboard", found)
    if console.measure(whole, options=console.options.update(width=1000)).maximum <= console.width:
        console.print(whole)
    else:
        # the share is the first to go where even that is too wide
        left_out = ["model", "data"]
        narrow = console.measure(
            table(found, "", found, left_out), options=console.options.update(width=1000)
        )
        left_out += ["share"] * (narrow.maximum > console.width)
        for model, data in dict.fromkeys(map(_network, found)):
            part = [row for row in found if _network(row) == (model, data)]
            console.print(table(part, f"{model} on {data}", found, left_out))
    disturbed = sum(row.disturbed for row in found)
    if disturbed:
        runs = sum(row.runs - row.failed - row.pruned for row in found)
        console.print(f"{MARK} other work disturbed the timing of {disturbed} of {runs} runs", markup=False)
    config = outcomes[0].config
    place = "" if config.results_dir == "results" else f" --results-dir {shlex.quote(config.results_dir)}"
    for outcome in (outcome for outcome in outcomes if outcome.failed):
        error = outcome.result.get("error") or {}
        what = f"{outcome.result['status']}: {outcome.config.label()}: {error.get('message', '')}"
        console.print(what, markup=False, soft_wrap=True)
    console.print(f"Browse and compare: evenbench ui{place}", markup=False, soft_wrap=True)


def table(part: Sequence[Row], title: str, found: Sequence[Row], left_out: Sequence[str] = ()) -> Table:
    """A table of a part of the rows, its columns as wide as all rows that were found need them.

    Where axes are left out, space is short: headers take two lines and columns stand closer.
    """
    drawn = plain_table(title)
    drawn.padding = (0, 1, 0, 0) if left_out else (0, 1)
    names = [name for name in found[0].axes if name not in left_out]
    for name in names:
        title = name.rpartition(".")[2]
        width = max(len(title), *(len(row.axes[name]) for row in found))
        drawn.add_column(title, min_width=width, overflow="fold")
    scores = {row.score for row in part} - {""}
    mixed = len(scores) > 1
    score = "test score" if mixed else "".join(scores) or "test score"
    columns = (score, "step ms", "samples/s", "share", "compile s", "peak MB", "runs")
    shares = "share" not in left_out and any(not math.isnan(row.share) for row in found)
    known = [number for number, name in enumerate(columns) if shares or name != "share"]
    for number in known:
        name = columns[number]
        header = name.replace(" ", "\n").replace("s/s", "s\n/s") if left_out else name
        width = max(*map(len, header.split("\n")), *(len(_cells(row, mixed)[number]) for row in found))
        drawn.add_column(header, justify="right", min_width=width, overflow="fold")
    above: Row | None = None
    for row in part:
        if above is not None and _network(above) != _network(row):
            drawn.add_row()
        cells = _cells(row, mixed)
        drawn.add_row(*(row.axes[name] for name in names), *(cells[number] for number in known))
        above = row
    return drawn


def _network(row: Row) -> tuple[str, str]:
    """What frameworks are compared on."""
    return row.axes["model"], row.axes["data"]


def _cells(row: Row, mixed: bool) -> list[str]:
    """The numbers of a row; `mixed` where scores of several kinds share a column, so that each is named."""
    kind = f"{row.score.rpartition('/')[2]} " if mixed else ""
    spread = "" if math.isnan(row.score_deviation) else f" ± {row.score_deviation:.3f}"
    others = [f"{count} {what}" for count, what in ((row.failed, "failed"), (row.pruned, "pruned")) if count]
    runs = str(row.runs) + (f" ({', '.join(others)})" if others else "")
    numbers = (
        (row.score_mean, f"{kind}{row.score_mean:.3f}{spread}"),
        (row.step_ms, f"{row.step_ms:.3f}" + MARK * bool(row.disturbed)),
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

    def middle(name: str) -> float:
        return median([metrics[name] for metrics in finished])

    return Row(
        axes=axes,
        runs=len(group),
        failed=failed,
        pruned=len(group) - len(finished) - failed,
        score=score,
        score_mean=statistics.fmean(scores) if scores else math.nan,
        score_deviation=statistics.stdev(scores) if len(scores) > 1 else math.nan,
        step_ms=middle("speed/step_ms"),
        samples_per_second=middle("speed/samples_per_second"),
        share=median([m["speed/share_of_limit"] for m in finished if "speed/share_of_limit" in m]),
        # a kept program compiles nothing, so the largest value is the one that a compilation took
        compile_s=max((metrics["time/compile_s"] for metrics in finished), default=math.nan),
        peak_mb=middle("memory/peak_mb"),
        disturbed=sum(outcome.finished and _is_disturbed(outcome) for outcome in group),
    )


def _is_disturbed(outcome: Outcome) -> bool:
    # results of an earlier version don't say
    return bool((outcome.result.get("timing") or {}).get("disturbed"))


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _last_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value
