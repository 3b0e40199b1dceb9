"""A sweep that is a search: trials become runs, and what the runs come to is told to the search.

A trial is a job of the sweep like any other, with the values of the space as overrides. Keys that are swept
beside it (`seed=range(3)`) are run for each trial, and the trial comes to the mean of them.
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
from harness.shell.search.plan import Composer, SearchPlan
from harness.shell.search.space import folder_of
from harness.shell.search.study import Search, Trial, TrialResult, TrialShouldContinue, runs_of
from harness.shell.session.session import Session


@runtime_checkable
class Launcher(Protocol):
    """What is needed of a launcher, see `harness.shell.engines.protocol`."""

    engine: Engine | None
    should_continue: JobShouldContinue | None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Do the runs; each job's `return_value` is an Outcome."""
        ...


class SearchSweep:
    """Carries out a request by the launcher; `options` are those of the command line that composed it."""

    def __init__(
        self,
        request: SearchPlan,
        composer: Composer,
        launcher: Launcher,
        session: Session,
        options: Sequence[str],
    ) -> None:
        self._request, self._composer, self._launcher = request, composer, launcher
        self._session, self._options = session, options
        self._config = request.config
        self._launched = 0

    def run(self) -> None:
        """Go on with the search until it has its trials; raises ConfigError where it can't be this one."""
        request, base = self._request, self._request.base
        members = len(request.asked.members)
        results_dir = Path(base.results_dir).resolve()
        if request.set_aside:
            names = ", ".join(request.set_aside)
            self._session.note(f"set on the command line, and so not searched for: {names}")
        with Search(
            folder_of(results_dir, base.study),
            base.study,
            self._config,
            request.definition,
            request.epochs,
            self._session.note,
        ) as search:
            told = [trial for trial in search.trials() if trial.state.is_finished()]
            self._session.note(report.plan_text(search.total, len(told)))
            self._session.catch_up(base, (run for trial in told for run in runs_of(trial)))
            runs = max(0, search.total - len(told)) * members
            self._session.search(runs, request.epochs, self._first, self._config.objectives[self._first])
            engine = self._launcher.engine
            together = base.workers if engine is None else engine.max_parallel_runs(base)
            search.run(self._carry, -(-together // members))
            found = report.SearchReport(self._config, search.trials(), search.best())
        again = report.command(self._options, request.asked)
        self._session.conclude(base, found.metrics(), found.tags())
        self._session.report = lambda: report.show(found, again)

    def _carry(self, trials: Sequence[Trial], umpire: TrialShouldContinue | None) -> list[TrialResult]:
        """Do the trials of a batch; one that can't be is a failed one."""
        answers: dict[int, TrialResult] = {}
        try:
            jobs = [self._jobs(trial) for trial in trials]
            outcomes = self._launch(trials, jobs, umpire)
        except ConfigError as error:
            answers = {trial.number: answer for trial in trials if (answer := self._refused(trial))}
            if not answers:  # nothing is wrong with one of them by itself
                raise error
            left = [trial for trial in trials if trial.number not in answers]
            outcomes = self._launch(left, [self._jobs(trial) for trial in left], umpire) if left else []
        done = iter(outcomes)
        return [answers.get(trial.number) or self._answer(next(done)) for trial in trials]

    def _jobs(self, trial: Trial) -> list[list[str]]:
        mark = self._config.mark()
        members = self._request.asked.members
        return [self._composer.job(fixed, trial.values, trial.number, mark) for fixed in members]

    def _launch(
        self, trials: Sequence[Trial], jobs: Sequence[list[list[str]]], umpire: TrialShouldContinue | None
    ) -> list[list[Outcome]]:
        """The outcomes of each trial's runs."""
        self._launcher.should_continue = None if umpire is None else _judge(trials, umpire, self._first)
        flat = [job for of_trial in jobs for job in of_trial]
        returned = iter(self._launcher.launch(flat, self._launched))
        self._launched += len(flat)
        return [[next(returned).return_value for _ in of_trial] for of_trial in jobs]

    def _refused(self, trial: Trial) -> TrialResult | None:
        """Why a trial can't be, if it can't."""
        try:
            for fixed in self._request.asked.members:
                run = self._composer.run(fixed, trial.values)
                self._composer.check_together([run], self._launcher.engine)
        except ConfigError as error:
            return TrialResult("failed", reason="; ".join(f"{m.key}: {m.problem}" for m in error.mistakes))
        return None

    def _answer(self, outcomes: Sequence[Outcome]) -> TrialResult:
        runs = tuple(str(outcome.result["run_id"]) for outcome in outcomes)
        epochs = [_epochs(outcome, self._first) for outcome in outcomes]
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

    @property
    def _first(self) -> str:
        return next(iter(self._config.objectives))


def _judge(trials: Sequence[Trial], umpire: TrialShouldContinue, objective: str) -> JobShouldContinue:
    def judge(place: int, record: Record) -> bool:
        return umpire(trials[place].number, int(record["epoch"]), float(record["metrics"][objective]))

    return judge


def _epochs(outcome: Outcome, objective: str) -> dict[int, float]:
    """The objective after each epoch, as the run's folder has it."""
    folder = RunFolder(Path(outcome.config.results_dir).resolve() / "runs" / str(outcome.result["run_id"]))
    records: Sequence[Mapping[str, Any]] = (folder.result() or {}).get("epochs", ())
    return {int(r["epoch"]): float(r["metrics"][objective]) for r in records if objective in r["metrics"]}


def _reason(outcome: Outcome) -> str:
    error = outcome.result.get("error") or {}
    return f"{outcome.result['status']}: {error.get('message', 'no reason known')}"
