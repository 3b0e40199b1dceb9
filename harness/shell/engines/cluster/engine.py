"""The engine over a cluster's places: hands runs out, brings back what they left, does them again elsewhere.

A thread a site opens its place, takes runs from the board as long as there are any, and writes what the node
says into the run's folder here, whose lock it holds meanwhile, as a worker on this machine would. So a folder
is never half of one attempt and half of another: events are appended as they come, files replace each other
whole, `result.json` comes last.

A place that is lost costs the run that was in it one of its `retries`. The attempt is recorded as killed and
set aside; the last checkpoint goes along to wherever the run is done again. Nodes may join meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.core.config.run_config import RunConfig
from harness.core.runs.run_folder import CONCLUSIVE
from harness.core.storage.atomic import replacing
from harness.core.validation import ConfigError, Mistake, parse, to_plain
from harness.shell.engines import lost_runs, slots
from harness.shell.engines.cluster.node import RETURNED
from harness.shell.engines.cluster.protocol import Cluster, LostError, Need, RefusedError, RemoteSlot
from harness.shell.engines.protocol import Listener, ShouldContinue
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.process import Worker, WorkerDiedError, WorkerExit

TRIES = 2  # to open a place, in a row
LOOK_S = 1.0  # between two looks for nodes that joined
STOP_TIMEOUT_S = 10.0


@dataclass
class _Portion:
    """The runs of one call of `execute`, and whom to tell of them."""

    waiting: list[PreparedRun]
    left: int
    listener: Listener
    verdict: ShouldContinue | None
    lost: dict[str, int] = field(default_factory=dict)
    error: BaseException | None = None


class ClusterEngine:
    """See `Engine`. A run whose node died is done again, at most `retries` times."""

    def __init__(self, cluster: Cluster, retries: int) -> None:
        self._cluster = cluster
        self._retries = retries
        self._need: Need | None = None
        self._first: list[PreparedRun] = []
        self._threads: dict[str, threading.Thread] = {}
        self._settled: set[str] = set()  # sites whose place was opened or could not be
        self._retired: set[str] = set()  # sites that are not tried again
        self._places: dict[str, RemoteSlot] = {}
        self._portion: _Portion | None = None
        self._news: list[str] = []
        self._reasons: list[str] = []
        self._opened = False
        self._stopped = False
        self._changed = threading.Condition()
        self._telling = threading.Lock()

    # -- what the session calls ------------------------------------------------------------------------------

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError for what can't be done on this cluster."""
        slots.check(runs)
        mistakes = []
        for device in dict.fromkeys(run.config.device for run in runs if ":" in run.config.device):
            problem = f"{device!r} names a card, and it is the cluster that gives them out"
            mistakes.append(Mistake("device", problem, "cpu, cuda"))
        if any(run.config.pin for run in runs):
            mistakes.append(Mistake("pin", "runs are pinned on this machine alone", "pin=false"))
        if mistakes:
            raise ConfigError(mistakes)
        self._cluster.check(runs)

    def begin(self, runs: Sequence[PreparedRun]) -> None:
        """Have places opened, as many as there are sites and runs."""
        if not runs:
            return
        need = Need.of(runs)
        if self._need is None or not self._need.covers(need):
            self._end_places(kill=False)
            self._need = need
            self._stopped = False
        self._cluster.connect(self._need, runs[0].results_dir)
        self._first = list({run.worker: run for run in reversed(runs)}.values())[::-1]
        self._look(len(runs))

    def ready(self) -> Mapping[WorkerKey, Worker] | None:
        """Wait until the places are there, but not for long: a queue may be."""
        deadline = time.monotonic() + self._cluster.settle_s
        with self._changed:
            self._changed.wait_for(
                lambda: self._settled >= set(self._threads), max(0.0, deadline - time.monotonic())
            )
        return None

    def execute(
        self, runs: Sequence[PreparedRun], listener: Listener, verdict: ShouldContinue | None
    ) -> None:
        """Do all runs; see `Engine`."""
        portion = _Portion(list(runs), len(runs), listener, verdict)
        try:
            with self._changed:
                self._portion = portion
                self._changed.notify_all()
            self._wait(portion)
        except BaseException:
            with self._changed:
                portion.waiting.clear()
            self._end_places(kill=True)
            raise
        finally:
            with self._changed:
                self._portion = None
        self._tell(portion)

    def together(self, config: RunConfig) -> int:
        """As many as there are places by now."""
        gpu = config.device.startswith("cuda")
        self._cluster.connect(Need(config.threads, gpu, config.workers), Path(config.results_dir))
        return len(self._cluster.sites())

    def close(self, kill: bool) -> None:
        """Give all places back."""
        self._end_places(kill)
        self._cluster.close(kill)

    # -- in the main thread ----------------------------------------------------------------------------------

    def _wait(self, portion: _Portion) -> None:
        """Until all runs of a portion have ended. Runs for which no node is left end here."""
        alone_since: float | None = None
        while portion.left:
            if portion.error is not None:
                raise portion.error
            self._look(portion.left)
            self._tell(portion)
            with self._changed:
                alone_since = None if self._threads else alone_since or time.monotonic()
                self._changed.wait_for(lambda: not portion.left or portion.error, LOOK_S)
            if alone_since is not None and time.monotonic() - alone_since >= self._cluster.wait_s:
                self._give_up(portion)
        if portion.error is not None:
            raise portion.error

    def _give_up(self, portion: _Portion) -> None:
        reason = "; ".join(dict.fromkeys(self._reasons)) or "none came"
        if not self._opened:
            raise ConfigError([Mistake("hydra/launcher", f"no place for a run could be had: {reason}")])
        with self._changed:
            runs, portion.waiting = portion.waiting, []
        for run in runs:
            with self._telling:
                portion.listener.started(run, "no node")
            lost_runs.record(run, WorkerExit("failed", "cluster", f"no node is left: {reason}"), None)
            self._ended(run, portion)

    def _look(self, wanted: int) -> None:
        """A thread for each site that has none, as long as there are fewer than runs."""
        sites = self._cluster.sites()
        with self._changed:
            for site in sites:
                free = site not in self._threads and site not in self._retired
                if free and len(self._threads) < wanted and not self._stopped:
                    thread = threading.Thread(target=self._live, args=(site,), name=site, daemon=True)
                    self._threads[site] = thread
                    thread.start()

    def _tell(self, portion: _Portion) -> None:
        with self._changed:
            news, self._news = self._news, []
        for text in news:
            with self._telling:
                portion.listener.note(text)

    def _end_places(self, kill: bool) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            places, threads = list(self._places.values()), list(self._threads.values())
        if kill:
            for place in places:
                place.close(kill=True)
        for thread in threads:
            thread.join(STOP_TIMEOUT_S)

    # -- in the thread of a site -----------------------------------------------------------------------------

    def _live(self, site: str) -> None:
        tried = 0
        try:
            while tried < TRIES and self._has_work():
                place: RemoteSlot | None = None
                try:
                    tried += 1
                    place = self._open(site)
                    if place is not None:
                        tried = 0
                        self._serve(place)
                except LostError as error:
                    self._blame(site, str(error), tried == TRIES)
                except RefusedError as error:
                    self._blame(site, str(error), True)
                    self._report(f"{error}: it gets no runs")
                    return
                finally:
                    if place is not None:
                        place.close(kill=False)
        except BaseException as error:  # of the listener or the verdict, say: the main thread raises it
            with self._changed:
                if self._portion is not None:
                    self._portion.error = error
        finally:
            with self._changed:
                self._places.pop(site, None)
                self._settled.add(site)
                self._threads.pop(site, None)
                self._changed.notify_all()

    def _open(self, site: str) -> RemoteSlot | None:
        try:
            place = self._cluster.open(site, lambda: not self._has_work())
            if place is not None:
                with self._changed:
                    self._places[site] = place
                    self._opened = True
                    first = self._first[len(self._settled) % len(self._first)]
                place.warm(to_plain(first.job))
            return place
        finally:
            with self._changed:
                self._settled.add(site)
                self._changed.notify_all()

    def _has_work(self) -> bool:
        with self._changed:
            return not self._stopped and (self._portion is None or self._portion.left > 0)

    def _serve(self, place: RemoteSlot) -> None:
        """Do runs until there are no more; raises LostError, RefusedError."""
        had: set[WorkerKey] = set()
        while (run := self._take(had)) is not None:
            had.add(run.worker)
            self._do(run, place)

    def _take(self, had: set[WorkerKey]) -> PreparedRun | None:
        """The next run, best one for a worker that is there; waits for it as long as the command lasts."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or (self._portion and self._portion.waiting))
            if self._stopped or self._portion is None:
                return None
            waiting = self._portion.waiting
            return waiting.pop(min(range(len(waiting)), key=lambda n: (waiting[n].worker not in had, n)))

    def _do(self, run: PreparedRun, place: RemoteSlot) -> None:
        portion = self._portion
        assert portion is not None
        told = replace(run, job=replace(run.job, beside=place.beside)) if place.beside else run
        begun: list[Mapping[str, Any]] = []
        with self._telling:
            portion.listener.started(told, place.name)
        try:
            self._bring_back(told, place, portion, begun)
        except WorkerDiedError as error:
            lost_runs.record(told, error.death, next(iter(begun), None))
        except LostError as error:
            self._lost(run, told, place, portion, error, next(iter(begun), None))
            raise
        except RefusedError:
            with self._changed:
                portion.waiting.insert(0, run)
                self._changed.notify_all()
            raise
        self._ended(told, portion)

    def _bring_back(
        self, run: PreparedRun, place: RemoteSlot, portion: _Portion, begun: list[Mapping[str, Any]]
    ) -> None:
        """Have the run done, and its folder filled; raises WorkerDiedError, LostError, RefusedError."""
        folder, again = run.folder, run.job.run_id in portion.lost
        with folder.locked():  # after another sweep that does the same run
            if folder.status() in CONCLUSIVE and not run.config.force:
                return
            if run.config.force and not again:
                folder.checkpoint.unlink(missing_ok=True)
            folder.set_aside()
            order = {
                "job": to_plain(run.job),
                "judged": portion.verdict is not None,
                "program": run.program,
            }
            death: WorkerExit | None = None
            for message in place.run(order, _files(run)):
                match message["event"]:
                    case "file":
                        _receive(folder.path, message["name"], message["content"])
                    case "died":
                        death = parse(WorkerExit, message["death"])
                    case "limit":
                        run = replace(run, job=replace(run.job, limit_gflops=message["gflops"]))
                        folder.write_job(to_plain(run.job))
                    case "note":
                        self._report(f"{place.name}: {message['message']}")
                    case "refused":
                        raise RefusedError(message["message"])
                    case "ended":
                        break
                    case event:
                        folder.append_event(message)
                        if event == "started":
                            begun.append(message)
                        self._pass_on(run, place, portion, message)
            if death is not None:
                raise WorkerDiedError(death)
            if folder.status() is None:
                raise LostError("it said that the run had ended, and sent no result")
            if folder.status() in CONCLUSIVE:
                folder.checkpoint.unlink(missing_ok=True)

    def _pass_on(
        self, run: PreparedRun, place: RemoteSlot, portion: _Portion, event: Mapping[str, Any]
    ) -> None:
        with self._telling:
            portion.listener.event(run, event)
            if portion.verdict is None or event["event"] != "epoch":
                return
            going = portion.verdict(run, event)
        place.judge(going)

    def _lost(
        self,
        run: PreparedRun,
        told: PreparedRun,
        place: RemoteSlot,
        portion: _Portion,
        error: LostError,
        begun: Mapping[str, Any] | None,
    ) -> None:
        """Record that the run's place is gone, and hand the run out again, unless that happened too often."""
        if self._stopped:
            with contextlib.suppress(BlockingIOError):
                lost_runs.record(told, lost_runs.INTERRUPTED, begun, wait=False)
            self._ended(told, portion)
            return
        times = portion.lost[run.job.run_id] = portion.lost.get(run.job.run_id, 0) + 1
        over = times > self._retries
        often = f", and its place {times} times in all" if over and times > 1 else ""
        message = f"{place.name} was lost in the middle of the run{often}: {error}"
        lost_runs.record(told, WorkerExit("killed", "node", message), begun)
        if over:
            self._ended(told, portion)
            return
        self._report(f"{place.name} was lost ({error}); {run.config.label()} is done again")
        with self._changed:
            portion.waiting.insert(0, run)
            self._changed.notify_all()

    def _ended(self, run: PreparedRun, portion: _Portion) -> None:
        with self._telling:
            portion.listener.ended(run, run.folder.result() or {})
        with self._changed:
            portion.left -= 1
            self._changed.notify_all()

    def _blame(self, site: str, reason: str, retire: bool) -> None:
        with self._changed:
            self._reasons.append(reason)
            if retire:
                self._retired.add(site)

    def _report(self, text: str) -> None:
        with self._changed:
            self._news.append(text)


def _files(run: PreparedRun) -> dict[str, Path]:
    """The files that the run reads, by their names below a results folder."""
    names = [run.job.data_file]
    if (source := run.config.init.from_run) is not None:
        names += [f"runs/{source}/{name}" for name in ("job.json", "result.json", "weights.npz", "state.npz")]
    names.append(f"runs/{run.job.run_id}/{run.folder.checkpoint.name}")
    found = {name: run.results_dir / name for name in names}
    return {name: path for name, path in found.items() if path.exists()}


def _receive(folder: Path, name: str, content: bytes) -> None:
    """Take a file of a run; a name that is none of a run's is not written anywhere."""
    if name not in RETURNED:
        raise LostError(f"a node sent {name!r}, which is no file of a run")
    with replacing(folder / name) as temporary:
        temporary.write_bytes(content)
