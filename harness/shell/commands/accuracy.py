"""`evenbench certify --accuracy`: train over several seeds and compare the scores of the frameworks.

The trainings are ordinary runs: finished ones are not repeated, and more seeds cost only the new runs.
Reports are written to `<results_dir>/certificates/accuracy/<id>.json`. The option belongs to `certify`, which
parses it; this module is not a subcommand of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness.core.config.run_config import RunConfig
from harness.core.storage.json_files import write_json
from harness.core.validation import ConfigError, Mistake
from harness.shell.certificates.accuracy import accuracy_id, evaluate, print_reports
from harness.shell.compose.hydra import compose
from harness.shell.engines.protocol import Engine, JobShouldContinue
from harness.shell.environment.frameworks import installed_frameworks
from harness.shell.reports.progress import reporter
from harness.shell.runs.records import Outcome
from harness.shell.session.session import Session

MARGIN = 0.01  # a percentage point of accuracy
SEEDS = 5
STUDY = "accuracy"


def certify_accuracy(overrides: Sequence[str], margin: float, as_json: bool) -> int:
    """Train, compare, store and print; returns 0 if everything is equivalent, else 1."""
    with Session(reporter()) as session:

        def train(
            configs: list[RunConfig], engine: Engine | None, should_continue: JobShouldContinue | None
        ) -> Sequence[Outcome]:
            _check(configs)
            return session.execute(configs, engine, should_continue)

        status = compose(["--multirun", *_defaults(overrides), *overrides], train)
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


def _check(configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError for a single framework, or a single seed, which shows no spread."""
    groups: dict[str, list[RunConfig]] = {}
    for config in configs:
        groups.setdefault(accuracy_id(config), []).append(config)
    mistakes: list[Mistake] = []
    if any(len({config.framework.name for config in group}) < 2 for group in groups.values()):
        names = ", ".join(installed_frameworks())
        mistakes.append(
            Mistake("framework", "a single framework has nothing to compare with", f"two of {names}")
        )
    if any(len({config.seed for config in group}) < 2 for group in groups.values()):
        mistakes.append(
            Mistake("seed", "a single seed shows no spread", f"several, e.g. seed=range({SEEDS})")
        )
    if mistakes:
        raise ConfigError(mistakes)


def _defaults(overrides: Sequence[str]) -> list[str]:
    """Defaults for what the overrides leave open: all installed frameworks, several seeds, a study's name.

    An experiment sets its own seeds and study.
    """
    keys = {text.partition("=")[0].lstrip("+") for text in overrides}
    choices = {"framework": ",".join(installed_frameworks())}
    if "experiment" not in keys:
        choices |= {"seed": f"range({SEEDS})", "study": STUDY}
    return [f"{key}={choice}" for key, choice in choices.items() if key not in keys]
