"""`evenbench certify --accuracy`: is what people train in everyday float32 as good in every framework?

The certificates of `evenbench certify` prove the mathematics in float64; this is the other end, whole
trainings with each framework's defaults over several seeds. They are ordinary runs, so that what is finished
is not done again, and more seeds cost only the new ones. Runs that differ in framework and seed alone share a
report, with a verdict for each pair of frameworks, in `<results_dir>/certificates/accuracy/<id>.json`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.config.run_config import RunConfig
from harness.core.storage.dates import today
from harness.core.storage.digest import digest
from harness.core.storage.json_files import write_json
from harness.core.validation import ConfigError, Mistake, to_plain
from harness.shell.certificates.equivalence import LEVEL, Equivalence, compare
from harness.shell.compose import hydra
from harness.shell.engines.protocol import Engine, JobShouldContinue
from harness.shell.environment.versions import versions
from harness.shell.reports.axes import NO_AXES, axes
from harness.shell.reports.leaderboard import SCORES
from harness.shell.reports.progress import reporter
from harness.shell.reports.tables import plain_table, screen
from harness.shell.runs.records import Outcome
from harness.shell.session.session import Session

MARGIN = 0.01  # a percentage point of accuracy
SEEDS = 5
STUDY = "accuracy"
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
    """The verdicts on one network, data set and training; `axes` say which. `failed` runs are in no pair."""

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
        """JSON form, with the verdicts."""
        verdicts = {f"{pair.a} - {pair.b}": pair.result.verdict for pair in self.pairs}
        plain: dict[str, Any] = to_plain(self)
        return plain | {"level": LEVEL, "passed": self.passed, "verdicts": verdicts}


def accuracy_command(arguments: Sequence[str], margin: float, as_json: bool) -> int:
    """Train, compare, store and print; 0 where all is equivalent, else 1, as `undecided` proves nothing."""
    with Session(reporter()) as session:

        def train(
            configs: list[RunConfig], engine: Engine | None, judge: JobShouldContinue | None
        ) -> Sequence[Outcome]:
            _check(configs)
            return session.execute(configs, engine, judge)

        status = hydra.compose(["--multirun", *_defaults(arguments), *arguments], train)
    if not session.outcomes:
        return status
    reports = evaluate(session.outcomes, margin)
    folder = Path(session.outcomes[0].config.results_dir).resolve() / "certificates" / "accuracy"
    folder.mkdir(parents=True, exist_ok=True)
    for report in reports:
        write_json(folder / f"{report.id}.json", report.plain())
    if as_json:
        print(json.dumps([report.plain() for report in reports], indent=1))
    else:
        print_reports(reports)
    return 0 if all(report.passed for report in reports) else 1


def evaluate(outcomes: Sequence[Outcome], margin: float) -> list[Report]:
    """A report for each group of runs that differ in framework and seed alone."""
    groups: dict[str, list[Outcome]] = {}
    names: dict[str, dict[str, str]] = {}
    for outcome, values in zip(outcomes, axes(outcome.config for outcome in outcomes), strict=True):
        identifier = _identifier(outcome.config)
        groups.setdefault(identifier, []).append(outcome)
        names[identifier] = {key: value for key, value in values.items() if key not in OF_FRAMEWORK}
    return [_report(identifier, names[identifier], group, margin) for identifier, group in groups.items()]


def print_reports(reports: Sequence[Report]) -> None:
    """A row for each pair of frameworks."""
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
            found = pair.result
            table.add_row(
                *report.axes.values(),
                f"{pair.a} - {pair.b}",
                report.score.rpartition("/")[2] or "-",
                _signed(found.difference),
                "-" if found.low is None else f"{_signed(found.low)} … {_signed(found.high)}",
                f"{found.margin:g}",
                str(found.pairs),
                found.verdict,
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


def _check(configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError where there is nothing to compare, or nothing to see a spread from."""
    groups: dict[str, list[RunConfig]] = {}
    for config in configs:
        groups.setdefault(_identifier(config), []).append(config)
    mistakes: list[Mistake] = []
    if any(len({config.framework.name for config in group}) < 2 for group in groups.values()):
        names = ", ".join(hydra.installed_frameworks())
        mistakes.append(Mistake("framework", "one framework has nothing to compare with", f"two of {names}"))
    if any(len({config.seed for config in group}) < 2 for group in groups.values()):
        mistakes.append(Mistake("seed", "one seed shows no spread", f"several, as seed=range({SEEDS})"))
    if mistakes:
        raise ConfigError(mistakes)


def _identifier(config: RunConfig) -> str:
    """The identity of what is compared: the configuration but for framework, seed and what moves no score."""
    plain = config.to_plain()
    kept = {key: value for key, value in plain.items() if key not in (*OF_FRAMEWORK, *NO_AXES)}
    return digest(kept)


def _defaults(arguments: Sequence[str]) -> list[str]:
    """What the arguments leave open: all installed frameworks, some seeds; an experiment says for itself."""
    given = {text.partition("=")[0].lstrip("+") for text in arguments}
    choices = {"framework": ",".join(hydra.installed_frameworks())}
    if "experiment" not in given:
        choices |= {"seed": f"range({SEEDS})", "study": STUDY}
    return [f"{key}={choice}" for key, choice in choices.items() if key not in given]


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
