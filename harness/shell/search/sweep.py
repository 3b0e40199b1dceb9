"""A sweep that is a search: trials become runs, and the results of the runs become results of trials.

The runs of a trial are jobs of the sweep like any other, with the values of the space as overrides. Keys that
are swept as well (`seed=range(3)`) give each trial several runs, and the trial's result is their mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hydra.core.utils import JobReturn

from harness.core.runs.run_folder import RunFolder
from harness.core.validation import ConfigError
from harness.shell.engines.protocol import Engine, JobShouldContinue, Record
from harness.shell.runs.records import Outcome
from harness.shell.search import report
from harness.shell.search.config import search_folder
from harness.shell.search.plan import SearchPlan
from harness.shell.search.study import Search, Trial, TrialResult, TrialShouldContinue, runs_of
from harness.shell.search.trial_composer import TrialComposer
from harness.shell.session.session import Session


@runtime_checkable
class Launcher(Protocol):
    """What a search needs of a launcher, see `harness.shell.engines.protocol`."""

    engine: Engine | None
    should_continue: JobShouldContinue | None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Execute the runs; each job's `return_value` is an Outcome."""
        ...


class SearchSweep:
    """Carries out a search with a launcher; `options` are those of the command line that composed it."""

    def __init__(
        self,
        plan: SearchPlan,
        composer: TrialComposer,
        launcher: Launcher,
        session: Session,
        options: Sequence[str],
    ) -> None:
        self._plan, self._composer, self._launcher = plan, composer, launcher
        self._session, self._options = session, options
        self._config = plan.config
        self._objective = next(iter(plan.config.objectives))  # the first, which the pruner uses
        self._launched = 0

    def run(self) -> None:
        """Run the search until it has all its trials; raises ConfigError if its folder has another search."""
        plan, base = self._plan, self._plan.base
        runs_per_trial = len(plan.overrides.runs_per_trial)
        results_dir = Path(base.results_dir).resolve()
        if plan.fixed_keys:
            self._session.note(f"set on the command line, so not searched: {', '.join(plan.fixed_keys)}")
        folder = search_folder(results_dir, base.study)
        with Search(
            folder, base.study, self._config, plan.definition, plan.epochs, self._session.note
        ) as search:
            finished = [trial for trial in search.trials() if trial.state.is_finished()]
            self._session.note(report.plan_text(search.total, len(finished)))
            self._session.catch_up(base, (run for trial in finished for run in runs_of(trial)))
            runs = max(0, search.total - len(finished)) * runs_per_trial
            direction = self._config.objectives[self._objective]
            self._session.search(runs, plan.epochs, self._objective, direction)
            engine = self._launcher.engine
            parallel_runs = base.workers if engine is None else engine.max_parallel_runs(base)
            search.run(self._run_trials, batch_size=math.ceil(parallel_runs / runs_per_trial))
            summary = report.SearchReport(self._config, search.trials(), search.best())
        command = report.command_without_search(self._options, plan.overrides)
        self._session.conclude(base, summary.metrics(), summary.tags())
        self._session.report = lambda: report.print_report(summary, command)

    def _run_trials(
        self, trials: Sequence[Trial], should_continue: TrialShouldContinue | None
    ) -> list[TrialResult]:
        """Run the trials of a batch; one that is invalid is a failed trial."""
        invalid: dict[int, TrialResult] = {}
        try:
            outcomes = self._launch(trials, should_continue)
        except ConfigError as error:
            invalid = {trial.number: result for trial in trials if (result := self._check(trial))}
            if not invalid:  # every trial is valid by itself
                raise error
            valid = [trial for trial in trials if trial.number not in invalid]
            outcomes = self._launch(valid, should_continue) if valid else []
        remaining = iter(outcomes)
        return [invalid.get(trial.number) or self._result(next(remaining)) for trial in trials]

    def _launch(
        self, trials: Sequence[Trial], should_continue: TrialShouldContinue | None
    ) -> list[list[Outcome]]:
        """Execute the runs of all trials; return the outcomes by trial."""
        objectives = self._config.objectives_text()
        runs = self._plan.overrides.runs_per_trial
        jobs = [
            self._composer.run_overrides(fixed, trial.values, trial.number, objectives)
            for trial in trials
            for fixed in runs
        ]
        self._launcher.should_continue = (
            None if should_continue is None else _by_job(trials, should_continue, self._objective)
        )
        returned = iter(self._launcher.launch(jobs, self._launched))
        self._launched += len(jobs)
        return [[next(returned).return_value for _ in runs] for _ in trials]

    def _check(self, trial: Trial) -> TrialResult | None:
        """Return a failed result with the mistakes of an invalid trial, None for a valid one."""
        try:
            for fixed in self._plan.overrides.runs_per_trial:
                config = self._composer.run_config(fixed, trial.values)
                self._composer.check_together([config], self._launcher.engine)
        except ConfigError as error:
            return TrialResult("failed", reason="; ".join(f"{m.key}: {m.problem}" for m in error.mistakes))
        return None

    def _result(self, outcomes: Sequence[Outcome]) -> TrialResult:
        runs = tuple(str(outcome.result["run_id"]) for outcome in outcomes)
        epochs = [_epochs(outcome, self._objective) for outcome in outcomes]
        mean = {
            epoch: statistics.fmean(of_run[epoch] for of_run in epochs)
            for epoch in epochs[0]
            if all(epoch in of_run for of_run in epochs)
        }
        for outcome in outcomes:
            if outcome.result["status"] == "pruned":
                return TrialResult("pruned", epochs=mean, runs=runs)
            if not outcome.finished:
                return TrialResult("failed", reason=_reason(outcome), epochs=mean, runs=runs)
        values = {
            name: statistics.fmean(outcome.result["metrics"].get(name, math.nan) for outcome in outcomes)
            for name in self._config.objectives
        }
        for name, value in values.items():
            if not math.isfinite(value):
                return TrialResult("failed", reason=f"{name} is {value}", epochs=mean, runs=runs)
        return TrialResult("complete", tuple(values.values()), mean, runs=runs)


def _by_job(
    trials: Sequence[Trial], should_continue: TrialShouldContinue, objective: str
) -> JobShouldContinue:
    def job_should_continue(index: int, record: Record) -> bool:
        value = float(record["metrics"][objective])
        return should_continue(trials[index].number, int(record["epoch"]), value)

    return job_should_continue


def _epochs(outcome: Outcome, objective: str) -> dict[int, float]:
    """Return the objective after each epoch, from the run's folder."""
    folder = RunFolder(Path(outcome.config.results_dir).resolve() / "runs" / str(outcome.result["run_id"]))
    records: Sequence[Mapping[str, Any]] = (folder.result() or {}).get("epochs", ())
    return {int(r["epoch"]): float(r["metrics"][objective]) for r in records if objective in r["metrics"]}


def _reason(outcome: Outcome) -> str:
    error = outcome.result.get("error") or {}
    return f"{outcome.result['status']}: {error.get('message', 'no reason known')}"
