"""The results of a search: a table, tags and metrics for MLflow, and the command that repeats the best
trial."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from harness.shell.reports.tables import plain_table, screen
from harness.shell.search.config import SearchConfig
from harness.shell.search.plan import SweepOverrides
from harness.shell.search.space import override_texts
from harness.shell.search.study import REASON, STATES
from harness.shell.search.trial_composer import SECTION

SHOWN = 10
MODES = ("-m", "--multirun", "--run", "-r")
NAMES = {state: name for name, state in STATES.items()}


@dataclass(frozen=True)
class SearchReport:
    """All trials of a search, and the best one, or the Pareto front for several objectives."""

    config: SearchConfig
    trials: Sequence[FrozenTrial]
    best: Sequence[FrozenTrial]

    def top(self) -> list[FrozenTrial]:
        """List the complete trials, best first; for several objectives, the Pareto front only."""
        direction = next(iter(self.config.objectives.values()))
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        trials = list(self.best) if len(self.config.objectives) > 1 else complete
        return sorted(trials, key=lambda trial: trial.values[0], reverse=direction == "maximize")

    def metrics(self) -> dict[str, float]:
        """Return the best value of each objective."""
        metrics = {}
        for index, (name, direction) in enumerate(self.config.objectives.items()):
            if values := [trial.values[index] for trial in self.best]:
                metrics[f"best/{name}"] = max(values) if direction == "maximize" else min(values)
        return metrics

    def tags(self) -> dict[str, str]:
        """Return the search's settings, the numbers of the best trials, and the parameters of a single
        one."""
        tags = {
            "search.sampler": self.config.sampler,
            "search.objectives": self.config.objectives_text(),
            "search.trials": state_counts(self.trials),
            "search.best_trials": ", ".join(str(trial.number) for trial in self.best),
        }
        if len(self.best) == 1:
            texts = override_texts(self.best[0].params)
            tags |= {f"search.best.{key}": text for key, text in texts.items()}
        return tags


def plan_text(total: int, finished: int) -> str:
    """Describe what the search is about to do."""
    if finished >= total:
        return f"all {total} trials were done before; a larger search.trials adds to them"
    return f"{total} trials" + (f", {finished} of them done before" if finished else "")


def state_counts(trials: Sequence[FrozenTrial]) -> str:
    """Count the trials by state, for example `9 complete, 1 failed`."""
    counts = Counter(NAMES.get(trial.state, "open") for trial in trials)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def command_without_search(options: Sequence[str], overrides: SweepOverrides) -> list[str]:
    """Return the command without its search, to which the values of a trial can be appended."""
    plain = [option for option in options if option not in MODES]
    fixed = [text.lstrip("+") if text.startswith("++") else text for text in overrides.fixed.values()]
    others = [text for text in fixed if text.partition("=")[0].lstrip("+~").partition(".")[0] != SECTION]
    swept = [
        f"{key}={','.join(text.partition('=')[2] for text in texts)}" for key, texts in overrides.axes.items()
    ]
    return ["evenbench", *(["-m"] if swept else []), *plain, *others, *swept]


def print_report(report: SearchReport, command: Sequence[str]) -> None:
    """Print the best trials, the counts, why trials failed, and `command` with the best trial's values."""
    console = screen()
    top = report.top()
    several = len(report.config.objectives) > 1
    if not top:
        console.print("no trial is complete, so there is no best one", markup=False)
    else:
        title = "Trials that no other one beats in every objective" if several else "Best trials"
        console.print(_table(report, top[:SHOWN], title))
        if len(top) > SHOWN:
            console.print(f"... and {len(top) - SHOWN} more", markup=False)
    console.print(f"{len(report.trials)} trials: {state_counts(report.trials)}", markup=False)
    for trial in report.trials:
        if reason := trial.user_attrs.get(REASON):
            console.print(f"trial {trial.number} failed: {reason}", markup=False, soft_wrap=True)
    if top:
        words = [*command, *(f"{key}={text}" for key, text in override_texts(top[0].params).items())]
        label = "The first of them" if several else "The best one"
        console.print(f"{label}: {shlex.join(words)}", markup=False, soft_wrap=True)


def _table(report: SearchReport, trials: Sequence[FrozenTrial], title: str) -> Table:
    table = plain_table(title)
    table.add_column("trial", justify="right")
    for name in report.config.objectives:
        table.add_column(name, justify="right")
    for key in report.config.space:
        table.add_column(key, overflow="fold")
    for trial in trials:
        values = [f"{value:.5g}" for value in trial.values]
        params = [_short(trial.params[key]) for key in report.config.space]
        table.add_row(str(trial.number), *values, *params)
    return table


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
