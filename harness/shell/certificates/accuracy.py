"""Accuracy reports: do float32 trainings score the same in every framework?

Certificates prove the mathematics in float64. Accuracy reports compare whole trainings with each framework's
defaults, over several seeds. Runs that differ only in framework and seed share a report, with a verdict for
each pair of frameworks.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.config.run_config import RunConfig
from harness.core.storage.dates import today
from harness.core.storage.digest import digest
from harness.core.validation import to_plain
from harness.shell.certificates.equivalence import LEVEL, Equivalence, compare
from harness.shell.environment.versions import versions
from harness.shell.reports.axes import NO_AXES, axes
from harness.shell.reports.leaderboard import SCORES
from harness.shell.reports.tables import plain_table, screen
from harness.shell.runs.records import Outcome

OF_FRAMEWORK = ("framework", "execution")


@dataclass(frozen=True)
class Pair:
    """Two frameworks on the same seeds: `a - b`."""

    a: str
    b: str
    seeds: tuple[int, ...]
    result: Equivalence


@dataclass(frozen=True)
class Report:
    """The verdicts for one network, data set and training, described by `axes`. Failed runs are in no
    pair."""

    id: str
    axes: dict[str, str]
    score: str
    versions: dict[str, dict[str, str]]
    scores: dict[str, dict[int, float]]
    failed: int
    pairs: tuple[Pair, ...]
    made: str

    @property
    def passed(self) -> bool:
        """Whether every run ended and every pair of frameworks was shown to be equivalent."""
        return not self.failed and all(pair.result.verdict == "equivalent" for pair in self.pairs)

    def plain(self) -> dict[str, Any]:
        """Return the plain form, with the verdicts."""
        verdicts = {f"{pair.a} - {pair.b}": pair.result.verdict for pair in self.pairs}
        plain: dict[str, Any] = to_plain(self)
        return plain | {"level": LEVEL, "passed": self.passed, "verdicts": verdicts}


def evaluate(outcomes: Sequence[Outcome], margin: float) -> list[Report]:
    """Build a report for each group of runs that differ only in framework and seed."""
    groups: dict[str, list[Outcome]] = {}
    names: dict[str, dict[str, str]] = {}
    for outcome, values in zip(outcomes, axes(outcome.config for outcome in outcomes), strict=True):
        identifier = accuracy_id(outcome.config)
        groups.setdefault(identifier, []).append(outcome)
        names[identifier] = {key: value for key, value in values.items() if key not in OF_FRAMEWORK}
    return [_report(identifier, names[identifier], group, margin) for identifier, group in groups.items()]


def print_reports(reports: Sequence[Report]) -> None:
    """Print a row for each pair of frameworks."""
    console = screen()
    title = "Is a training as good in every framework? Differences of the score, paired by seed"
    table = plain_table(title)
    for key in reports[0].axes:
        table.add_column(key.rpartition(".")[2], no_wrap=True)
    for name in ("frameworks", "score"):
        table.add_column(name, no_wrap=True)
    for name in ("difference", f"{1 - 2 * LEVEL:.0%} interval", "margin", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for report in reports:
        for pair in report.pairs:
            result = pair.result
            table.add_row(
                *report.axes.values(),
                f"{pair.a} - {pair.b}",
                report.score.rpartition("/")[2] or "-",
                _signed(result.difference),
                "-" if result.low is None else f"{_signed(result.low)} … {_signed(result.high)}",
                f"{result.margin:g}",
                str(result.pairs),
                result.verdict,
            )
    console.print(table)
    if failed := sum(report.failed for report in reports):
        console.print(f"{failed} runs failed, and are in no pair: evenbench leaderboard shows them")
    if any(pair.result.verdict == "undecided" for report in reports for pair in report.pairs):
        console.print("undecided: the interval lies across the margin; more seeds narrow it: seed=range(20)")


def _report(identifier: str, names: dict[str, str], group: Sequence[Outcome], margin: float) -> Report:
    finished = [outcome for outcome in group if outcome.finished]
    score = next((name for name in SCORES for o in finished if name in o.result["metrics"]), "")
    scores: dict[str, dict[int, float]] = {outcome.config.framework.name: {} for outcome in group}
    for outcome in finished:
        config = outcome.config
        scores[config.framework.name][config.seed] = float(outcome.result["metrics"][score])
    return Report(
        id=identifier,
        axes=names,
        score=score,
        versions={o.config.framework.name: dict(versions(o.config.framework)) for o in group},
        scores=scores,
        failed=len(group) - len(finished),
        pairs=tuple(_pair(a, b, scores, margin) for a, b in itertools.combinations(scores, 2)),
        made=today(),
    )


def _pair(a: str, b: str, scores: Mapping[str, Mapping[int, float]], margin: float) -> Pair:
    seeds = tuple(sorted(scores[a].keys() & scores[b].keys()))
    result = compare([scores[a][seed] for seed in seeds], [scores[b][seed] for seed in seeds], margin)
    return Pair(a, b, seeds, result)


def accuracy_id(config: RunConfig) -> str:
    """Identify a report: the configuration without framework, seed, and keys that do not affect the score."""
    plain = config.to_plain()
    return digest({key: value for key, value in plain.items() if key not in (*OF_FRAMEWORK, *NO_AXES)})


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
