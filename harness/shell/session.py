"""What one command does: runs in order, in warm workers, into folders, into MLflow.

A session lasts as long as the command, so that a sweep which hands over its runs in several portions (as a
search does) keeps its workers, its store and its progress bar. Workers are started together and waited for
before the first run, and MLflow is imported meanwhile: nothing of that may happen beside a run that is timed.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from harness.config import RunConfig
from harness.data import Dataset
from harness.job import CONCLUSIVE, Failure, Result, RunFolder
from harness.parse import to_plain
from harness.shell import links
from harness.shell.axes import labels
from harness.shell.certificate import Shelf
from harness.shell.certify import make_missing, statement
from harness.shell.limits import Limits
from harness.shell.prepare import DataShelf, Prepared, prepare
from harness.shell.process import Death, Worker, WorkerDiedError, WorkerKey
from harness.shell.progress import Reporter
from harness.shell.store import resolve_uri, sqlite_path
from harness.shell.trackthread import TrackingThread
from harness.start import Start

MAX_WORKERS = 6  # kept alive at a time; each holds a framework in memory
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # from a batch system, from a terminal that is closed


@dataclass(frozen=True)
class Outcome:
    """A run and what came out of it; `skipped` if that was known before."""

    config: RunConfig
    result: dict[str, Any]
    skipped: bool

    @property
    def finished(self) -> bool:
        """Whether the run trained to its end."""
        return bool(self.result["status"] == "finished")


class Session:
    """Runs what it is given; use it as a context manager, in the main thread.

    Meanwhile SIGTERM and SIGHUP end it as Ctrl-C does: by a KeyboardInterrupt, with the signal's number.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.outcomes: list[Outcome] = []
        self._reporter = reporter
        self._shelf = DataShelf()
        self._limits = Limits(reporter.note)
        self._labels: dict[str, str] = {}
        self._workers: dict[WorkerKey, Worker] = {}
        self._tracking: dict[tuple[str, str | None], TrackingThread] = {}
        # those that are ignored stay so: `nohup` does that
        self._signals = [number for number in END_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]

    def __enter__(self) -> Session:
        for number in self._signals:
            signal.signal(number, _interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._close(kind is not None)
        finally:
            for number in self._signals:
                signal.signal(number, signal.SIG_DFL)

    def _close(self, broken: bool) -> None:
        for worker in self._workers.values():
            worker.close(kill=broken)
        self._reporter.close()
        for tracking in self._tracking.values():
            missed = tracking.close()
            if missed.folders:
                what = f"{len(missed.folders)} runs are not in MLflow ({missed.error})"
                self._reporter.note(f"{what}; `evenbench sync` adds them")

    def execute(self, configs: Sequence[RunConfig]) -> list[Outcome]:
        """Do the runs that are not done, in the given order; raises ConfigError before anything starts.

        Returns an outcome for each configuration; those that describe the same run share one.
        """
        asked = prepare(configs, self._shelf)
        runs = list({run.job.run_id: run for run in asked}.values())
        done = {run.job.run_id: result for run in runs if (result := _known(run)) is not None}
        todo = self._certified([run for run in runs if run.job.run_id not in done])
        self._labels |= dict(
            zip((run.job.run_id for run in todo), labels([r.config for r in todo]), strict=True)
        )
        for text in dict.fromkeys(text for run in todo if (text := starting(run.start))):
            self._reporter.note(text)
        self._reporter.begin(len(todo), len(done))
        warm = dict.fromkeys(run.worker for run in todo if run.config.isolation == "warm")
        for key in list(warm)[:MAX_WORKERS]:
            self._worker(key)
        unseen = [run for run in runs if run.job.run_id in done and not _is_tracked(run)]
        for run in unseen:
            self._track(run).sync(run.folder.path)
        for run in todo:
            self._track(run).study(run.config.study)
        for tracking in self._tracking.values():
            tracking.wait_open()
        for worker in list(self._workers.values()):
            with contextlib.suppress(WorkerDiedError):  # the first run that needs it records the reason
                worker.wait_ready()
        fresh = {run.job.run_id: self._run(run) for run in self._limited(todo)}
        for run in {run.config.study: run for run in todo}.values():
            self._track(run).finish_study(run.config.study, _study_status(list(fresh.values())))
        results = done | fresh
        outcomes = {
            run.job.run_id: Outcome(run.config, results[run.job.run_id], run.job.run_id in done)
            for run in runs
        }
        self.outcomes += outcomes.values()
        return [outcomes[run.job.run_id] for run in asked]

    def _certified(self, runs: Sequence[Prepared]) -> list[Prepared]:
        """The runs with their certificates, of which those that are missing are made first."""
        requests: dict[Path, list[tuple[RunConfig, Dataset]]] = {}
        for run in runs:
            if run.config.certify == "auto":
                requests.setdefault(run.results_dir, []).append((run.config, self._dataset(run)))
        for results_dir, wanted in requests.items():
            make_missing(wanted, Shelf(results_dir), self._reporter.note)
        return [self._with_statement(run) for run in runs]

    def _with_statement(self, run: Prepared) -> Prepared:
        said = statement(run.config, self._dataset(run), Shelf(run.results_dir))
        return replace(run, job=replace(run.job, certificate=said))

    def _limited(self, runs: Sequence[Prepared]) -> list[Prepared]:
        """The runs with the limits that they are held against; those not known are measured first."""
        return [
            replace(run, job=replace(run.job, limit_gflops=self._limits.of(run, self._workers)))
            if run.config.limit == "auto"
            else run
            for run in runs
        ]

    def _dataset(self, run: Prepared) -> Dataset:
        return self._shelf.get(run.config.data, run.results_dir)[0]

    def _track(self, run: Prepared) -> TrackingThread:
        key = run.config.results_dir, run.config.tracking.uri
        if key not in self._tracking:
            thread = TrackingThread(Path(key[0]).resolve(), key[1], warn=self._reporter.note)
            thread.close_orphans()
            self._tracking[key] = thread
        return self._tracking[key]

    def _run(self, run: Prepared) -> dict[str, Any]:
        label = self._labels[run.job.run_id]
        tracking, folder = self._track(run), run.folder
        self._reporter.started(label, run.config.train.epochs)
        folder.write_job(to_plain(run.job))
        Shelf(run.results_dir).copy_to(folder.path, (run.job.certificate or {}).get("id"))
        begun: dict[str, Any] | None = None
        try:
            for event in self._events(run):
                if event["event"] == "started":
                    begun = event
                    tracking.begin(folder.path, to_plain(run.job))
                elif event["event"] == "epoch":
                    tracking.epochs(folder.path, [event])
                    self._reporter.epoch(event)
        except WorkerDiedError as error:
            self._record_death(run, error.death, begun)
        except KeyboardInterrupt:
            self._drop(run.worker, kill=True)
            death = Death("killed", "interrupted", "the sweep was interrupted")
            with contextlib.suppress(BlockingIOError):  # another sweep does the run: it is not ours to end
                self._record_death(run, death, begun, wait=False)
            raise
        finally:
            result = folder.result() or {}
            if result and _is_attempt(folder, begun):
                tracking.finish(folder.path, result)
            else:  # the worker never started it, or another sweep finished it
                tracking.sync(folder.path)
        self._reporter.ended(label, result)
        return result

    def _events(self, run: Prepared) -> Iterator[dict[str, Any]]:
        fresh = run.config.isolation == "fresh"
        if fresh:  # not one that an earlier portion of the sweep left warm
            self._drop(run.worker)
        worker = self._worker(run.worker)
        try:
            yield from worker.run(run.folder.path, run.config.force, run.config.timeout_s)
        except WorkerDiedError:
            self._drop(run.worker)
            raise
        # an error on a GPU may have left nothing there that works
        doubtful = run.config.device != "cpu" and run.folder.status() == "failed"
        if fresh or doubtful:
            self._drop(run.worker)

    def _record_death(
        self, run: Prepared, death: Death, begun: dict[str, Any] | None, wait: bool = True
    ) -> None:
        """Write the result that the worker could not write any more.

        The lock is free when it is dead, and another sweep may have taken the run over. `begun` is the event
        that began our attempt. Raises BlockingIOError with `wait=False`, where another sweep works on it.
        """
        folder = run.folder
        with folder.locked(wait):
            status = folder.status()
            if _is_attempt(folder, begun):
                if status is not None:
                    return
            elif status is not None and (begun or (status in CONCLUSIVE and not run.config.force)):
                return
            else:
                folder.set_aside()
            epochs = [
                {key: value for key, value in event.items() if key not in ("event", "time_ms")}
                for event in folder.events()
                if event["event"] == "epoch"
            ]
            failure = Failure(death.type, death.message, folder.log_tail() or death.log_tail)
            run_id, proof = run.job.run_id, run.job.certificate
            result = Result(run_id, death.status, failure, epochs=tuple(epochs), certificate=proof)
            folder.write_result(to_plain(result))

    def _worker(self, key: WorkerKey) -> Worker:
        worker = self._workers.pop(key, None)
        if worker is not None and worker.ready and not worker.alive:
            worker.close()  # killed while it was idle, which is no run's fault
            worker = None
        if worker is None:
            if len(self._workers) >= MAX_WORKERS:
                self._drop(next(iter(self._workers)))
            worker = Worker(key)
        self._workers[key] = worker
        return worker

    def _drop(self, key: WorkerKey, kill: bool = False) -> None:
        worker = self._workers.pop(key, None)
        if worker is not None:
            worker.close(kill)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def starting(start: Start) -> str:
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


def _is_attempt(folder: RunFolder, begun: dict[str, Any] | None) -> bool:
    """Whether what the folder holds is the attempt that began with this event."""
    return begun is not None and folder.events()[:1] == [begun]


def _known(run: Prepared) -> dict[str, Any] | None:
    """The result of an earlier command, unless it is to be had again."""
    result = run.folder.result()
    if run.config.force or result is None or result["status"] not in CONCLUSIVE:
        return None
    return result


def _is_tracked(run: Prepared) -> bool:
    """Whether the store that is asked for has all of the run; a database may have been removed since."""
    link = links.read_link(run.folder.path)
    uri = resolve_uri(Path(run.config.results_dir).resolve(), run.config.tracking.uri)
    database = sqlite_path(uri)
    if link is None or link.tracking_uri != uri or (database is not None and not database.exists()):
        return False
    return link.digest == links.digest(run.folder.path)


def _study_status(results: Sequence[dict[str, Any]]) -> str:
    return "finished" if all(result["status"] == "finished" for result in results) else "failed"
