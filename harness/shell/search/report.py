"""What a search found: a table for people, tags and metrics for MLflow, the command that repeats the best."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from harness.shell.reports.tables import plain_table, screen
from harness.shell.search.plan import SECTION, SweepOverrides
from harness.shell.search.space import SearchConfig
from harness.shell.search.study import REASON, STATES, texts

SHOWN = 10
MODES = ("-m", "--multirun", "--run", "-r")
NAMES = {state: name for name, state in STATES.items()}


@dataclass(frozen=True)
class SearchReport:
    """All trials, and the best of them: one, or those that no other one beats in every objective."""

    config: SearchConfig
    trials: Sequence[FrozenTrial]
    best: Sequence[FrozenTrial]

    def top(self) -> list[FrozenTrial]:
        """The complete trials worth showing, best first: of several objectives the best ones alone."""
        direction = next(iter(self.config.objectives.values()))
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        chosen = list(self.best) if len(self.config.objectives) > 1 else complete
        return sorted(chosen, key=lambda trial: trial.values[0], reverse=direction == "maximize")

    def metrics(self) -> dict[str, float]:
        """The best value of each objective."""
        found = {}
        for place, (name, direction) in enumerate(self.config.objectives.items()):
            if values := [trial.values[place] for trial in self.best]:
                found[f"best/{name}"] = max(values) if direction == "maximize" else min(values)
        return found

    def tags(self) -> dict[str, str]:
        """What was searched for, and which trials are the best, with the parameters of a single one."""
        tags = {
            "search.sampler": self.config.sampler,
            "search.objectives": self.config.mark(),
            "search.trials": counted(self.trials),
            "search.best_trials": ", ".join(str(trial.number) for trial in self.best),
        }
        if len(self.best) == 1:
            tags |= {f"search.best.{key}": text for key, text in texts(self.best[0].params).items()}
        return tags


def plan_text(total: int, known: int) -> str:
    """What is about to be done."""
    if known >= total:
        return f"all {total} trials were done before; a larger search.trials adds to them"
    return f"{total} trials" + (f", {known} of them done before" if known else "")


def counted(trials: Sequence[FrozenTrial]) -> str:
    """How many trials came to what."""
    counts = Counter(NAMES.get(trial.state, "open") for trial in trials)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def command(options: Sequence[str], asked: SweepOverrides) -> list[str]:
    """The command without its search, to which the values of a trial are added."""
    plain = [option for option in options if option not in MODES]
    fixed = [text.lstrip("+") if text.startswith("++") else text for text in asked.fixed.values()]
    kept = [text for text in fixed if text.partition("=")[0].lstrip("+~").partition(".")[0] != SECTION]
    swept = [
        f"{key}={','.join(text.partition('=')[2] for text in texts)}" for key, texts in asked.axes.items()
    ]
    return ["evenbench", *(["-m"] if swept else []), *plain, *kept, *swept]


def show(found: SearchReport, again: Sequence[str]) -> None:
    """Print what was found."""
    console = screen()
    top = found.top()
    if not top:
        console.print("no trial is complete: there is no best one", markup=False)
    else:
        several = len(found.config.objectives) > 1
        title = "Trials that no other one beats in everything" if several else "Best trials"
        console.print(_table(found, top[:SHOWN], title))
        if len(top) > SHOWN:
            console.print(f"... and {len(top) - SHOWN} more", markup=False)
    console.print(f"{len(found.trials)} trials: {counted(found.trials)}", markup=False)
    for trial in found.trials:
        if reason := trial.user_attrs.get(REASON):
            console.print(f"trial {trial.number} failed: {reason}", markup=False, soft_wrap=True)
    if top:
        words = [*again, *(f"{key}={text}" for key, text in texts(top[0].params).items())]
        what = "The first of them" if len(found.config.objectives) > 1 else "The best one"
        console.print(f"{what}: {shlex.join(words)}", markup=False, soft_wrap=True)


def _table(found: SearchReport, trials: Sequence[FrozenTrial], title: str) -> Table:
    table = plain_table(title)
    table.add_column("trial", justify="right")
    for name in found.config.objectives:
        table.add_column(name, justify="right")
    for key in found.config.space:
        table.add_column(key, overflow="fold")
    for trial in trials:
        values = [f"{value:.5g}" for value in trial.values]
        params = [_short(trial.params[key]) for key in found.config.space]
        table.add_row(str(trial.number), *values, *params)
    return table


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
