"""The engine of this machine: slots, each of which executes one run at a time in a warm worker.

Each slot has a thread that sleeps until its worker sends an event, so it takes no processor time from what is
being measured. Slots take their runs from a common queue. They prefer runs that their workers can execute
without an import or a compilation (which cost seconds), but are never idle while runs are left. With a single
slot, runs execute in the given order.

A worker's failure is handled by its slot. An interrupt reaches only the main thread, which waits: it kills
all workers, and the slots record what happened to their runs.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.core.config.run_config import RunConfig
from harness.shell.engines import lost_runs
from harness.shell.engines.protocol import Listener, ShouldContinue
from harness.shell.engines.slots import check_concurrency, oversubscription, slot_specs
from harness.shell.engines.worker_slot import WorkerSlot
from harness.shell.environment.devices import check_devices
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.process import Worker, WorkerDiedError, WorkerExit

MAX_WORKERS = 6  # alive at a time over all slots; each holds a framework in memory
STOP_TIMEOUT_S = 10.0  # for recording interrupted runs; another sweep may hold a run's folder


class LocalEngine:
    """See `harness.shell.engines.protocol.Engine`. `note` receives messages for the user."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._slots: list[WorkerSlot] = []

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError for devices that this machine lacks and for runs that can't be concurrent."""
        check_devices(run.config for run in runs)
        check_concurrency(runs)

    def begin(self, runs: Sequence[PreparedRun]) -> None:
        """Start a worker in each slot, or the workers of the first runs in the only slot."""
        if not runs:
            return
        specs = slot_specs(runs)
        if specs != [slot.spec for slot in self._slots]:
            self.close(kill=False)
            max_workers = max(1, MAX_WORKERS // len(specs))
            self._slots = [WorkerSlot(spec, max_workers) for spec in specs]
            if text := oversubscription(runs, len(specs)):
                self._note(text)
        for number, slot in enumerate(self._slots[: len(runs)]):
            warm = [run for run in runs if run.config.isolation == "warm" and slot.spec.accepts(run)]
            keys = list(dict.fromkeys(run.worker for run in warm))
            own_keys = keys[number % len(keys) :: len(self._slots)] if keys else []
            for key in own_keys[: slot.max_workers]:
                slot.worker(key)

    def ready(self) -> Mapping[WorkerKey, Worker]:
        """Wait for the workers' imports; see `Engine`."""
        workers: dict[WorkerKey, Worker] = {}
        for slot in self._slots:
            workers |= slot.ready()
        return workers

    def execute(
        self, runs: Sequence[PreparedRun], listener: Listener, should_continue: ShouldContinue | None
    ) -> None:
        """Execute all runs; see `Engine`."""
        slots = self._slots[: len(runs)]
        if len(slots) > 1:
            runs = [replace(run, job=replace(run.job, beside=len(slots) - 1)) for run in runs]
        run_queue = RunQueue(runs, slots, listener, should_continue)
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for slot in slots:
            threading.Thread(target=_serve, args=(slot, run_queue, ended), daemon=True).start()
        running = len(slots)
        try:
            while running:
                error = ended.get()
                running -= 1
                if error is not None:
                    raise error
        except BaseException:
            run_queue.clear()
            for slot in slots:
                slot.stop()
            with contextlib.suppress(queue.Empty):
                for _ in range(running):
                    ended.get(timeout=STOP_TIMEOUT_S)
            raise

    def max_parallel_runs(self, config: RunConfig) -> int:
        """The number of workers."""
        return config.workers

    def close(self, kill: bool) -> None:
        """End all workers."""
        for slot in self._slots:
            slot.close(kill)
        self._slots = []


class RunQueue:
    """The runs that are left, with the callbacks for those that execute."""

    def __init__(
        self,
        runs: Sequence[PreparedRun],
        slots: Sequence[WorkerSlot],
        listener: Listener,
        should_continue: ShouldContinue | None,
    ) -> None:
        self.listener, self.should_continue = listener, should_continue
        self.callback_lock = threading.Lock()
        self._runs = list(runs)
        self._slots = slots
        self._lock = threading.Lock()

    def pop(self, slot: WorkerSlot) -> PreparedRun | None:
        """The next run for a slot, or None if none is left."""
        with self._lock:
            accepted = [n for n, run in enumerate(self._runs) if slot.spec.accepts(run)]
            if not accepted:
                return None
            single = len(self._slots) == 1
            return self._runs.pop(accepted[0] if single else min(accepted, key=lambda n: self._rank(n, slot)))

    def clear(self) -> None:
        """Give out no more runs."""
        with self._lock:
            self._runs.clear()

    def _rank(self, number: int, slot: WorkerSlot) -> tuple[int, int]:
        """Sort key: the overhead of a run in this slot, and whether another slot is better prepared."""
        run = self._runs[number]
        others = [other for other in self._slots if other is not slot]
        if slot.has_worker(run.worker):
            elsewhere = any(other.has_program(run.worker, run.program) for other in others)
            return (0 if slot.has_program(run.worker, run.program) else 1 + elsewhere), number
        return 3 + any(other.has_worker(run.worker) for other in others), number


def _serve(slot: WorkerSlot, runs: RunQueue, ended: queue.SimpleQueue[BaseException | None]) -> None:
    """The thread of a slot."""
    try:
        while (run := runs.pop(slot)) is not None:
            _execute(run, slot, runs)
    except BaseException as error:  # from the listener or should_continue: the main thread raises it
        ended.put(error)
    else:
        ended.put(None)


def _execute(run: PreparedRun, slot: WorkerSlot, runs: RunQueue) -> None:
    """Execute a run in a slot, from `started` to `ended`."""
    started: dict[str, Any] | None = None
    with runs.callback_lock:
        runs.listener.started(run, slot.spec.name)
    try:
        for worker, event in slot.run(run, prunable=runs.should_continue is not None):
            if event["event"] == "started":
                started = event
            with runs.callback_lock:
                runs.listener.event(run, event)
                if runs.should_continue is None or event["event"] != "epoch":
                    continue
                answer = runs.should_continue(run, event)
            worker.continue_or_stop(answer)
    except WorkerDiedError as error:
        _write_result(run, lost_runs.INTERRUPTED if slot.stopped else error.exit, started, slot)
    except BaseException:
        slot.stop()
        _write_result(run, lost_runs.INTERRUPTED, started, slot)
        raise
    finally:
        with runs.callback_lock:
            runs.listener.ended(run, run.folder.result() or {})


def _write_result(
    run: PreparedRun, exit: WorkerExit, started: dict[str, Any] | None, slot: WorkerSlot
) -> None:
    # after an interrupt, a run that another sweep holds by now is left to it
    with contextlib.suppress(BlockingIOError):
        lost_runs.write_result(run, exit, started, wait=not slot.stopped)
