"""This machine's engine: slots, in each of which one run at a time goes on in a warm worker of its own.

A slot is a thread that sleeps until its worker says something: it must not eat the processor that is being
measured. It takes its runs from one board, those that its workers can do at once before others (an import
costs seconds, a compilation too), but is never idle while runs are left. With one slot, runs are done in the
order in which they were given.

Whatever happens to a worker is the affair of its slot. An interrupt reaches the main thread alone, which does
nothing but wait: it kills all workers, and the slots write down what became of their runs.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.core.config.run_config import RunConfig
from harness.core.machine import host
from harness.shell.engines import lost_runs
from harness.shell.engines.protocol import Listener, ShouldContinue
from harness.shell.engines.slots import SlotSpec, check, slot_specs
from harness.shell.environment import devices
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.process import Worker, WorkerDiedError, WorkerExit

MAX_WORKERS = 6  # kept alive at a time, over all slots; each holds a framework in memory
STOP_TIMEOUT_S = 10.0  # for writing down what was interrupted; another sweep may hold a run's folder


class LocalEngine:
    """See `harness.shell.engines.protocol.Engine`. `note` gets what people should know."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._slots: list[WorkerSlot] = []

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError for devices that are not here, and where runs can't go on beside each other."""
        devices.check(run.config for run in runs)
        check(runs)

    def begin(self, runs: Sequence[PreparedRun]) -> None:
        """Start a worker for each slot, or those for the first runs in the only one."""
        if not runs:
            return
        wanted = slot_specs(runs)
        if wanted != [slot.seat for slot in self._slots]:
            self.close(kill=False)
            kept = max(1, MAX_WORKERS // len(wanted))
            self._slots = [WorkerSlot(seat, kept) for seat in wanted]
            if text := crowded(runs, len(wanted)):
                self._note(text)
        for number, slot in enumerate(self._slots[: len(runs)]):
            warm = [run for run in runs if run.config.isolation == "warm" and slot.seat.takes(run)]
            keys = list(dict.fromkeys(run.worker for run in warm))
            dealt = keys[number % len(keys) :: len(self._slots)] if keys else []
            for key in dealt[: slot.kept]:
                slot.worker(key)

    def ready(self) -> Mapping[WorkerKey, Worker]:
        """Wait for the workers' imports; see `Engine`."""
        found: dict[WorkerKey, Worker] = {}
        for slot in self._slots:
            found |= slot.ready()
        return found

    def execute(
        self, runs: Sequence[PreparedRun], listener: Listener, verdict: ShouldContinue | None
    ) -> None:
        """Do all runs; see `Engine`."""
        slots = self._slots[: len(runs)]
        board = RunQueue([_beside(run, len(slots) - 1) for run in runs], slots, listener, verdict)
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for slot in slots:
            serving = threading.Thread(target=_serve, args=(slot, board, ended), daemon=True)
            serving.start()
        going = len(slots)
        try:
            while going:
                error = ended.get()
                going -= 1
                if error is not None:
                    raise error
        except BaseException:
            board.stop()
            for slot in slots:
                slot.stop()
            with contextlib.suppress(queue.Empty):
                for _ in range(going):
                    ended.get(timeout=STOP_TIMEOUT_S)
            raise

    def together(self, config: RunConfig) -> int:
        """As many as there are workers."""
        return config.workers

    def close(self, kill: bool) -> None:
        """End all workers."""
        for slot in self._slots:
            slot.close(kill)
        self._slots = []


class WorkerSlot:
    """Warm workers on a seat, of which one works at a time; at most `kept`."""

    def __init__(self, seat: SlotSpec, kept: int) -> None:
        self.seat, self.kept = seat, kept
        self.stopped = False
        self._workers: dict[WorkerKey, Worker] = {}
        self._programs: dict[WorkerKey, set[int]] = {}
        self._lock = threading.Lock()

    def has(self, key: WorkerKey) -> bool:
        """Whether it has such a worker."""
        return key in self._workers

    def knows(self, key: WorkerKey, program: int) -> bool:
        """Whether its worker has had a run with the same program."""
        return program in self._programs.get(key, ())

    def ready(self) -> dict[WorkerKey, Worker]:
        """Wait for its workers; those that did not start are left out."""
        found = {}
        for key, worker in list(self._workers.items()):
            with contextlib.suppress(WorkerDiedError):  # the first run that needs it records the reason
                worker.wait_ready()
                found[key] = worker
        return found

    def worker(self, key: WorkerKey) -> Worker:
        """The worker for such runs, started if need be."""
        with self._lock:
            if self.stopped:
                raise WorkerDiedError(lost_runs.INTERRUPTED)
            worker = self._workers.pop(key, None)
            if worker is not None and worker.ready and not worker.alive:
                worker.close()  # killed while it was idle, which is no run's fault
                worker = None
            if worker is None:
                self._programs.pop(key, None)
                if len(self._workers) >= self.kept:
                    self._drop(next(iter(self._workers)))
                worker = Worker(self.seat.placed(key), self.seat.cores)
            self._workers[key] = worker
            return worker

    def run(self, run: PreparedRun, judged: bool) -> Iterator[tuple[Worker, dict[str, Any]]]:
        """Do a run: its events, and the worker that they come from. Raises WorkerDiedError."""
        fresh = run.config.isolation == "fresh"
        if fresh:  # not one that an earlier portion of the sweep left warm
            self.drop(run.worker)
        worker = self.worker(run.worker)
        self._programs.setdefault(run.worker, set()).add(run.program)
        try:
            for event in worker.run(run.folder.path, run.config.force, run.config.timeout_s, judged):
                yield worker, event
        except WorkerDiedError:
            self.drop(run.worker)
            raise
        # an error on a GPU may have left nothing there that works
        doubtful = run.config.device != "cpu" and run.folder.status() == "failed"
        if fresh or doubtful:
            self.drop(run.worker)

    def drop(self, key: WorkerKey) -> None:
        """End a worker."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: WorkerKey) -> None:
        self._programs.pop(key, None)
        if (worker := self._workers.pop(key, None)) is not None:
            worker.close()

    def stop(self) -> None:
        """End all workers under the hands of the slot's thread, which finds them dead."""
        self.stopped = True
        with self._lock:
            for worker in self._workers.values():
                worker.kill()

    def close(self, kill: bool) -> None:
        """End all workers, when nothing runs any more."""
        for worker in self._workers.values():
            worker.close(kill)
        self._workers = {}


class RunQueue:
    """The runs that are left, and whom to tell of those that go on."""

    def __init__(
        self,
        runs: Sequence[PreparedRun],
        slots: Sequence[WorkerSlot],
        listener: Listener,
        verdict: ShouldContinue | None,
    ) -> None:
        self.listener, self.verdict = listener, verdict
        self.telling = threading.Lock()
        self._left = list(runs)
        self._slots = slots
        self._lock = threading.Lock()

    def take(self, slot: WorkerSlot) -> PreparedRun | None:
        """The next run for a slot, None where none is left."""
        with self._lock:
            fitting = [n for n, run in enumerate(self._left) if slot.seat.takes(run)]
            if not fitting:
                return None
            alone = len(self._slots) == 1
            return self._left.pop(fitting[0] if alone else min(fitting, key=lambda n: self._rank(n, slot)))

    def _rank(self, number: int, slot: WorkerSlot) -> tuple[int, int]:
        """How much a run would cost the slot besides its steps, and whether another is better off with it."""
        run = self._left[number]
        others = [other for other in self._slots if other is not slot]
        if slot.has(run.worker):
            known = any(other.knows(run.worker, run.program) for other in others)
            return (0 if slot.knows(run.worker, run.program) else 1 + known), number
        return 3 + any(other.has(run.worker) for other in others), number

    def stop(self) -> None:
        """Hand out no more runs."""
        with self._lock:
            self._left.clear()


def _serve(slot: WorkerSlot, board: RunQueue, ended: queue.SimpleQueue[BaseException | None]) -> None:
    """A slot's thread."""
    try:
        while (run := board.take(slot)) is not None:
            _do(run, slot, board)
    except BaseException as error:  # of the listener or the verdict: the main thread raises it
        ended.put(error)
    else:
        ended.put(None)


def _do(run: PreparedRun, slot: WorkerSlot, board: RunQueue) -> None:
    judged = board.verdict is not None
    begun: dict[str, Any] | None = None
    with board.telling:
        board.listener.started(run, slot.seat.name)
    try:
        for worker, event in slot.run(run, judged):
            if event["event"] == "started":
                begun = event
            with board.telling:
                board.listener.event(run, event)
                going = board.verdict is None or event["event"] != "epoch" or board.verdict(run, event)
            if judged and event["event"] == "epoch":
                worker.judge(going)
    except WorkerDiedError as error:
        _record(run, lost_runs.INTERRUPTED if slot.stopped else error.death, begun, slot)
    except BaseException:
        slot.stop()
        _record(run, lost_runs.INTERRUPTED, begun, slot)
        raise
    finally:
        with board.telling:
            board.listener.ended(run, run.folder.result() or {})


def _record(run: PreparedRun, death: WorkerExit, begun: dict[str, Any] | None, slot: WorkerSlot) -> None:
    # what was interrupted and is another sweep's by now is not ours to end
    with contextlib.suppress(BlockingIOError):
        lost_runs.record(run, death, begun, wait=not slot.stopped)


def _beside(run: PreparedRun, others: int) -> PreparedRun:
    return replace(run, job=replace(run.job, beside=others)) if others else run


def crowded(runs: Sequence[PreparedRun], slots: int) -> str:
    """A warning where the threads of all slots need more cores than there are."""
    threads = max(run.config.threads for run in runs)
    cores = host.usable_cores()
    if slots == 1 or slots * threads <= cores:
        return ""
    return f"{slots} runs at a time with threads={threads} share {cores} cores: expect no gain beyond that"
