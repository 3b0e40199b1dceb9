"""What one command does with its runs: prepare, skip finished ones, certify, execute, record.

A session lasts as long as the command, so that a sweep which submits its runs in several portions (as a
search does) keeps its workers, its stores and its progress bar. Workers are started together and waited for
before the first run, and MLflow is imported meanwhile: none of this may overlap with a timed run.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from harness.core.config.run_config import RunConfig
from harness.core.runs.run_folder import CONCLUSIVE, RunFolder
from harness.shell.certificates.certify import make_missing, statements
from harness.shell.certificates.store import CertificateStore
from harness.shell.engines.local import LocalEngine
from harness.shell.engines.protocol import Engine, JobShouldContinue, Record, ShouldContinue
from harness.shell.reports.axes import labels
from harness.shell.reports.progress import Reporter
from harness.shell.reports.progress_text import start_text
from harness.shell.runs.inputs import RunInputs
from harness.shell.runs.prepare import prepare
from harness.shell.runs.records import Outcome, PreparedRun
from harness.shell.session.autotune import ExecutionTuner
from harness.shell.session.recorder import RunRecorder, StoreThreads, without_epochs
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.matmul_limits import MatmulLimits
from harness.shell.workers.process import Worker

SWITCH_S = 0.0005
"""How long a slot's thread with a run to start waits for MLflow's thread; Python's default is 5 ms."""
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # from a batch system, from a terminal that is closed

Results = dict[str, dict[str, Any]]
"""Results without epochs, by run id."""


class Session:
    """Executes runs; use it as a context manager, in the main thread.

    Within it SIGTERM and SIGHUP act as Ctrl-C: they raise a KeyboardInterrupt, with the signal's number.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.outcomes: list[Outcome] = []
        self.report: Callable[[], None] | None = None  # prints what a search found, at the end
        self._reporter = reporter
        self._inputs = RunInputs()
        self._limits = MatmulLimits(reporter.note)
        self._tuner = ExecutionTuner(reporter.note)
        self._engines: list[Engine] = [LocalEngine(reporter.note)]
        self._stores = StoreThreads(reporter)
        self._switch_s = sys.getswitchinterval()
        # ignored signals stay ignored: `nohup` relies on it
        self._signals = [number for number in END_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]

    def __enter__(self) -> Session:
        for number in self._signals:
            signal.signal(number, _interrupt)
        sys.setswitchinterval(SWITCH_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            for engine in self._engines:
                engine.close(kill=kind is not None)
            self._reporter.close()
            self._stores.close()
        finally:
            sys.setswitchinterval(self._switch_s)
            for number in self._signals:
                signal.signal(number, signal.SIG_DFL)

    def execute(
        self,
        configs: Sequence[RunConfig],
        engine: Engine | None = None,
        should_continue: JobShouldContinue | None = None,
    ) -> list[Outcome]:
        """Execute the runs that are not finished; raises ConfigError before anything starts.

        `engine` is this machine's by default; another one is closed with the session. `should_continue` ends
        runs early. Returns an outcome for each configuration; those that describe the same run share one.
        """
        engine = self._adopt(engine)
        runs = self._prepare(configs, engine)
        finished, todo = _skip_finished(runs)
        todo = self._certify(todo)
        results = self._execute(todo, runs, finished, engine, should_continue)
        return self._record(runs, todo, finished, results)

    # -- the steps -------------------------------------------------------------------------------------------

    def _prepare(self, configs: Sequence[RunConfig], engine: Engine) -> list[PreparedRun]:
        """A run for each configuration, checked, with its execution tuned where `best` was requested."""
        runs = prepare(configs, self._inputs)
        runs = self._tuner.tune(runs, self._inputs, local=engine is self._engines[0])
        engine.check(_unique(runs))
        return runs

    def _certify(self, todo: Sequence[PreparedRun]) -> list[PreparedRun]:
        """The runs with what their certificates state; missing certificates are made first."""
        by_folder: dict[Path, list[PreparedRun]] = {}
        for run in todo:
            by_folder.setdefault(run.results_dir, []).append(run)
        stated: dict[str, dict[str, str]] = {}
        for results_dir, runs in by_folder.items():
            store = CertificateStore(results_dir)
            make_missing([run for run in runs if run.config.certify == "auto"], store, self._reporter.note)
            stated |= statements(runs, store)
        return [replace(run, job=replace(run.job, certificate=stated[run.job.run_id])) for run in todo]

    def _execute(
        self,
        todo: Sequence[PreparedRun],
        runs: Sequence[PreparedRun],
        finished: Results,
        engine: Engine,
        should_continue: JobShouldContinue | None,
    ) -> Results:
        """The results of the runs to do. Stores are opened, and finished runs synced, while workers start."""
        for text in dict.fromkeys(text for run in todo if (text := start_text(run.start))):
            self._reporter.note(text)
        epochs = sum(run.config.train.epochs - run.start.epochs for run in todo)
        self._reporter.begin(epochs, len(todo), len(finished))
        engine.begin(todo)
        done = [run for run in runs if run.job.run_id in finished]
        _join_studies(done)
        self._stores.catch_up([(run.config, run.folder) for run in _unique(done)])
        self._stores.open_studies(todo)
        workers = engine.ready()
        recorder = RunRecorder(self._stores, self._reporter, todo, labels([run.config for run in todo]))
        if todo:
            limited = todo if workers is None else self._with_limits(todo, workers)
            engine.execute(limited, recorder, _by_run(should_continue, runs))
        return recorder.results

    def _record(
        self,
        runs: Sequence[PreparedRun],
        todo: Sequence[PreparedRun],
        finished: Results,
        results: Results,
    ) -> list[Outcome]:
        """The outcome of each run; studies that share a run are told, and all studies ended."""
        for run in _join_studies([run for run in runs if run.job.run_id not in finished]):
            self._stores.thread(run.config).sync(run.folder.path)
        unique, every = _unique(runs), finished | results
        self._stores.finish_studies(unique, todo, every)
        outcomes = {
            run.job.run_id: Outcome(run.config, every[run.job.run_id], run.job.run_id in finished)
            for run in unique
        }
        self.outcomes += outcomes.values()
        return [outcomes[run.job.run_id] for run in runs]

    # -- for searches ----------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Print a line."""
        self._reporter.note(text)

    def search(self, runs: int, epochs: int, objective: str, direction: str) -> None:
        """Announce a search of so many runs with so many epochs each."""
        self._reporter.search(runs, epochs, objective, max if direction == "maximize" else min)

    def catch_up(self, config: RunConfig, run_ids: Iterable[str]) -> None:
        """Log runs of earlier commands, which may have been killed between the end of a run and its logging.

        Runs that were removed since are skipped.
        """
        parent = Path(config.results_dir).resolve() / "runs"
        folders = [RunFolder(parent / run_id) for run_id in run_ids]
        self._stores.catch_up([(config, folder) for folder in folders if folder.path.exists()])

    def conclude(self, config: RunConfig, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Log the summary of a run's study, after its last run."""
        self._stores.conclude(config, metrics, tags)

    # -- helpers ---------------------------------------------------------------------------------------------

    def _adopt(self, engine: Engine | None) -> Engine:
        if engine is None:
            return self._engines[0]
        if engine not in self._engines:
            self._engines.append(engine)
        return engine

    def _with_limits(
        self, runs: Sequence[PreparedRun], workers: Mapping[WorkerKey, Worker]
    ) -> list[PreparedRun]:
        """The runs with the matrix limits of their devices; those not yet measured are measured now."""
        limits = [
            self._limits.get(run.results_dir, run.config, workers) if run.config.limit == "auto" else None
            for run in runs
        ]
        return [
            replace(run, job=replace(run.job, limit_gflops=limit))
            for run, limit in zip(runs, limits, strict=True)
        ]


def _skip_finished(runs: Sequence[PreparedRun]) -> tuple[Results, list[PreparedRun]]:
    """The results of runs that an earlier command finished, and the runs to do."""
    unique = _unique(runs)
    finished = {run.job.run_id: result for run in unique if (result := _finished_result(run)) is not None}
    return finished, [run for run in unique if run.job.run_id not in finished]


def _finished_result(run: PreparedRun) -> dict[str, Any] | None:
    """The result of an earlier command, unless the run is to be repeated."""
    result = run.folder.result()
    if run.config.force or result is None or result["status"] not in CONCLUSIVE:
        return None
    return without_epochs(result)


def _unique(runs: Iterable[PreparedRun]) -> list[PreparedRun]:
    """One run per id: several configurations may describe the same run."""
    return list({run.job.run_id: run for run in runs}.values())


def _join_studies(runs: Iterable[PreparedRun]) -> list[PreparedRun]:
    """Add runs to the studies that request them; returns those that were new to a study."""
    return [run for run in runs if run.folder.join(run.config.study)]


def _by_run(should_continue: JobShouldContinue | None, runs: Sequence[PreparedRun]) -> ShouldContinue | None:
    """The callback as an engine calls it: with the run instead of the number of its configuration."""
    if should_continue is None:
        return None
    numbers = {run.job.run_id: number for number, run in reversed(list(enumerate(runs)))}
    callback = should_continue

    def by_run(run: PreparedRun, record: Record) -> bool:
        return callback(numbers[run.job.run_id], record)

    return by_run


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
