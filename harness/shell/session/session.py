"""What one command does with the runs that are asked for: which are done already, which are to be done.

A session lasts as long as the command, so that a sweep which hands over its runs in several portions (as a
search does) keeps its workers, its store and its progress bar. It prepares runs, leaves out those that are
finished, has certificates and limits made, and hands the rest to an engine (see `engines`), whose news it
passes on to MLflow and to people. Workers are started together and waited for before the first run, and
MLflow is imported meanwhile: nothing of that may happen beside a run that is timed.
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
from harness.core.data.dataset import Dataset
from harness.core.runs.run_folder import CONCLUSIVE, INTENDED, RunFolder
from harness.core.runs.warm_start import WarmStart
from harness.shell.certificates.certify import make_missing, statement
from harness.shell.certificates.store import CertificateStore
from harness.shell.engines.local import LocalEngine
from harness.shell.engines.protocol import Engine, JobShouldContinue, Record, ShouldContinue
from harness.shell.reports.axes import labels
from harness.shell.reports.progress import Reporter
from harness.shell.runs.inputs import DatasetCache
from harness.shell.runs.records import Outcome, PreparedRun
from harness.shell.session.autotune import ExecutionTuner
from harness.shell.session.recorder import RunRecorder, store_key, without_epochs
from harness.shell.tracking import run_links
from harness.shell.tracking.background import TrackingThread
from harness.shell.tracking.store import resolve_uri, sqlite_path
from harness.shell.tracking.tracker import study_is_left_open
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.matmul_limits import MatmulLimits
from harness.shell.workers.process import Worker

SWITCH_S = 0.0005
"""How long a slot's thread, which has a run to hand over, waits for MLflow's; Python's default is 5 ms."""
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # from a batch system, from a terminal that is closed


class Session:
    """Runs what it is given; use it as a context manager, in the main thread.

    Meanwhile SIGTERM and SIGHUP end it as Ctrl-C does: by a KeyboardInterrupt, with the signal's number.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.outcomes: list[Outcome] = []
        self.report: Callable[[], None] | None = None  # what a search has to say when all is done
        self._reporter = reporter
        self._shelf = DatasetCache()
        self._limits = MatmulLimits(reporter.note)
        self._choices = ExecutionTuner(reporter.note)
        self._engines: list[Engine] = [LocalEngine(reporter.note)]
        self._tracking: dict[tuple[str, str | None], TrackingThread] = {}
        self._switch_s = sys.getswitchinterval()
        # those that are ignored stay so: `nohup` does that
        self._signals = [number for number in END_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]

    def __enter__(self) -> Session:
        for number in self._signals:
            signal.signal(number, _interrupt)
        sys.setswitchinterval(SWITCH_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._close(kind is not None)
        finally:
            sys.setswitchinterval(self._switch_s)
            for number in self._signals:
                signal.signal(number, signal.SIG_DFL)

    def _close(self, broken: bool) -> None:
        for engine in self._engines:
            engine.close(kill=broken)
        self._reporter.close()
        for tracking in self._tracking.values():
            missed = tracking.close()
            if missed.folders:
                what = f"{len(missed.folders)} runs are not in MLflow ({missed.error})"
                self._reporter.note(f"{what}; `evenbench sync` adds them")

    def execute(
        self,
        configs: Sequence[RunConfig],
        engine: Engine | None = None,
        judge: JobShouldContinue | None = None,
    ) -> list[Outcome]:
        """Do the runs that are not done; raises ConfigError before anything starts.

        `engine` is this machine's by default; one that is given is closed with the session. `judge` ends runs
        early. Returns an outcome for each configuration; those that describe the same run share one.
        """
        engine = self._adopt(engine)
        asked = self._choices.prepare(configs, self._shelf, here=engine is self._engines[0])
        runs = list({run.job.run_id: run for run in asked}.values())
        engine.check(runs)
        done = {run.job.run_id: result for run in runs if (result := _known(run)) is not None}
        todo = self._certified([run for run in runs if run.job.run_id not in done])
        for text in dict.fromkeys(text for run in todo if (text := starting(run.start))):
            self._reporter.note(text)
        epochs = sum(run.config.train.epochs - run.start.epochs for run in todo)
        self._reporter.begin(epochs, len(todo), len(done))
        engine.begin(todo)
        _join([run for run in asked if run.job.run_id in done])
        self._catch_up([(run.config, run.folder) for run in runs if run.job.run_id in done])
        for run in todo:
            self._track(run.config).study(run.config.study)
        for tracking in self._tracking.values():
            tracking.wait_open()
        workers = engine.ready()
        desk = RunRecorder(self._tracking, self._reporter, labels([run.config for run in todo]), todo)
        if todo:
            limited = todo if workers is None else self._limited(todo, workers)
            engine.execute(limited, desk, _verdict(judge, asked))
        for run in _join([run for run in asked if run.job.run_id not in done]):
            self._track(run.config).sync(run.folder.path)
        results = done | desk.results
        worked_on = {run.config.study: run for run in todo}
        for run in worked_on.values():
            self._track(run.config).finish_study(run.config.study, _study_status(desk.results.values()))
        self._end_studies([run for run in runs if run.config.study not in worked_on], results)
        outcomes = {
            run.job.run_id: Outcome(run.config, results[run.job.run_id], run.job.run_id in done)
            for run in runs
        }
        self.outcomes += outcomes.values()
        return [outcomes[run.job.run_id] for run in asked]

    def note(self, text: str) -> None:
        """Tell people."""
        self._reporter.note(text)

    def search(self, runs: int, epochs: int, objective: str, direction: str) -> None:
        """What comes is a search of so many runs of so many epochs each."""
        self._reporter.search(runs, epochs, objective, max if direction == "maximize" else min)

    def catch_up(self, config: RunConfig, run_ids: Iterable[str]) -> None:
        """See to it that MLflow has runs of earlier commands, which may have been killed between the end of a
        run and its logging. Those that were removed since are passed over."""
        home = Path(config.results_dir).resolve() / "runs"
        folders = [RunFolder(home / run_id) for run_id in run_ids]
        self._catch_up([(config, folder) for folder in folders if folder.path.exists()])

    def _catch_up(self, runs: Sequence[tuple[RunConfig, RunFolder]]) -> None:
        # all are looked at before the first one is synced, which makes a database that was removed
        unseen = [run for run in runs if not _is_tracked(*run)]
        for config, folder in unseen:
            self._track(config).sync(folder.path)

    def _end_studies(self, runs: Sequence[PreparedRun], results: Mapping[str, Mapping[str, Any]]) -> None:
        """End the studies that a command which was killed after its last run has left open."""
        for run in {run.config.study: run for run in runs}.values():
            if study_is_left_open(run.results_dir, run.config.study):
                self._track(run.config).finish_study(run.config.study, _study_status(results.values()))

    def conclude(self, config: RunConfig, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Say in MLflow what the study of a run came to altogether, after its last runs."""
        if store_key(config) in self._tracking:  # else nothing was done, and it is said already
            self._tracking[store_key(config)].finish_study(config.study, "finished", metrics, tags)

    def _adopt(self, engine: Engine | None) -> Engine:
        if engine is None:
            return self._engines[0]
        if engine not in self._engines:
            self._engines.append(engine)
        return engine

    def _certified(self, runs: Sequence[PreparedRun]) -> list[PreparedRun]:
        """The runs with their certificates, of which those that are missing are made first."""
        requests: dict[Path, list[tuple[RunConfig, Dataset]]] = {}
        for run in runs:
            if run.config.certify == "auto":
                requests.setdefault(run.results_dir, []).append((run.config, self._dataset(run)))
        for results_dir, wanted in requests.items():
            make_missing(wanted, CertificateStore(results_dir), self._reporter.note)
        return [self._with_statement(run) for run in runs]

    def _with_statement(self, run: PreparedRun) -> PreparedRun:
        said = statement(run.config, self._dataset(run), CertificateStore(run.results_dir))
        return replace(run, job=replace(run.job, certificate=said))

    def _limited(self, runs: Sequence[PreparedRun], workers: Mapping[WorkerKey, Worker]) -> list[PreparedRun]:
        """The runs with the limits that they are held against; those not known are measured first."""
        limits = [
            self._limits.of(run.results_dir, run.config, workers) if run.config.limit == "auto" else None
            for run in runs
        ]
        return [
            replace(run, job=replace(run.job, limit_gflops=limit))
            for run, limit in zip(runs, limits, strict=True)
        ]

    def _dataset(self, run: PreparedRun) -> Dataset:
        return self._shelf.get(run.config.data, run.results_dir)[0]

    def _track(self, config: RunConfig) -> TrackingThread:
        key = store_key(config)
        if key not in self._tracking:
            thread = TrackingThread(Path(key[0]).resolve(), key[1], warn=self._reporter.note)
            thread.close_orphans()
            self._tracking[key] = thread
        return self._tracking[key]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def starting(start: WarmStart) -> str:
    """Where runs start that have no new weights alone, in words; empty for those that have."""
    parts = []
    if start.from_run is not None:
        done = f" after its {start.epochs} epochs" if start.resume else ""
        parts.append(f"{'going on' if start.resume else 'starting'} from run {start.from_run}{done}")
        parts.append(f"weights taken: {', '.join(start.taken) or 'none'}")
        parts += [f"made anew: {', '.join(start.new)}"] if start.new else []
    if start.frozen:
        parts.append(f"frozen: {', '.join(start.frozen)}")
    return "; ".join(parts)


def _verdict(judge: JobShouldContinue | None, asked: Sequence[PreparedRun]) -> ShouldContinue | None:
    if judge is None:
        return None
    places = {run.job.run_id: place for place, run in reversed(list(enumerate(asked)))}

    def verdict(run: PreparedRun, record: Record) -> bool:
        return judge(places[run.job.run_id], record)

    return verdict


def _known(run: PreparedRun) -> dict[str, Any] | None:
    """The result of an earlier command, unless it is to be had again."""
    result = run.folder.result()
    if run.config.force or result is None or result["status"] not in CONCLUSIVE:
        return None
    return without_epochs(result)


def _is_tracked(config: RunConfig, folder: RunFolder) -> bool:
    """Whether the store that is asked for has all of the run; a database may have been removed since."""
    link = run_links.read_link(folder.path)
    uri = resolve_uri(Path(config.results_dir).resolve(), config.tracking.uri)
    database = sqlite_path(uri)
    if link is None or link.tracking_uri != uri or (database is not None and not database.exists()):
        return False
    return link.digest == run_links.digest(folder.path) and link.studies == folder.studies()


def _join(runs: Sequence[PreparedRun]) -> list[PreparedRun]:
    """Let runs that were done for one study belong to the others that ask for them; those that did not."""
    return [run for run in runs if run.folder.join(run.config.study)]


def _study_status(results: Iterable[Mapping[str, Any]]) -> str:
    return "finished" if all(result["status"] in INTENDED for result in results) else "failed"
