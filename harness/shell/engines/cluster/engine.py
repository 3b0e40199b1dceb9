"""The engine for clusters: distributes runs over slots on nodes and repeats the runs of lost slots.

Each slot has a thread that opens it and executes runs in it as long as there are any; see `remote_run` for
one run. The loss of a slot costs the run in it one of its `retries`: the attempt is recorded as killed and
set aside, and its last checkpoint is sent to the slot that repeats the run. Nodes may join at any time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.core.config.run_config import RunConfig
from harness.core.validation import ConfigError, Mistake, to_plain
from harness.shell.engines import lost_runs
from harness.shell.engines.cluster.portion import Portion
from harness.shell.engines.cluster.protocol import (
    Cluster,
    NodeRefusedError,
    RemoteSlot,
    SlotLostError,
    SlotResources,
)
from harness.shell.engines.cluster.remote_run import RemoteRun
from harness.shell.engines.protocol import Listener, ShouldContinue
from harness.shell.engines.slots import check_concurrency
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.process import Worker, WorkerDiedError, WorkerExit

MAX_OPEN_ATTEMPTS = 2  # consecutive failures to open a slot
POLL_S = 1.0  # between two checks for nodes that joined
STOP_TIMEOUT_S = 10.0


class ClusterEngine:
    """See `Engine`. A run whose node died is repeated at most `retries` times."""

    def __init__(self, cluster: Cluster, retries: int) -> None:
        self._cluster = cluster
        self._retries = retries
        self._resources: SlotResources | None = None
        self._first_runs: list[PreparedRun] = []  # one for each kind of worker
        self._threads: dict[str, threading.Thread] = {}  # by slot id, as all that follow
        self._slots: dict[str, RemoteSlot] = {}
        self._settled: set[str] = set()  # opened at least once, or failed to open
        self._retired: set[str] = set()  # not tried again
        self._portion: Portion | None = None
        self._notes: list[str] = []
        self._failures: list[str] = []
        self._opened_any = False
        self._stopped = False
        self._changed = threading.Condition()

    # -- called by the session -------------------------------------------------------------------------------

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError for what this cluster can't do."""
        check_concurrency(runs)
        mistakes = []
        for device in dict.fromkeys(run.config.device for run in runs if ":" in run.config.device):
            problem = f"{device!r} names a card, but the cluster assigns the cards"
            mistakes.append(Mistake("device", problem, "cpu, cuda"))
        if any(run.config.pin for run in runs):
            mistakes.append(Mistake("pin", "runs are pinned on this machine alone", "pin=false"))
        if mistakes:
            raise ConfigError(mistakes)
        self._cluster.check(runs)

    def begin(self, runs: Sequence[PreparedRun]) -> None:
        """Start to open slots, at most one per run."""
        if not runs:
            return
        resources = SlotResources.of(runs)
        if self._resources is None or not self._resources.covers(resources):
            self._end_slots(kill=False)
            self._resources = resources
            self._stopped = False
        self._cluster.connect(self._resources, runs[0].results_dir)
        self._first_runs = list({run.worker: run for run in reversed(runs)}.values())[::-1]
        self._start_threads(len(runs))

    def ready(self) -> Mapping[WorkerKey, Worker] | None:
        """Wait until the slots are open, for a limited time: jobs may be queued for long."""
        deadline = time.monotonic() + self._cluster.startup_wait_s
        with self._changed:
            self._changed.wait_for(
                lambda: self._settled >= set(self._threads), max(0.0, deadline - time.monotonic())
            )
        return None

    def execute(
        self, runs: Sequence[PreparedRun], listener: Listener, should_continue: ShouldContinue | None
    ) -> None:
        """Execute all runs; see `Engine`."""
        portion = Portion(runs, listener, should_continue)
        try:
            with self._changed:
                self._portion = portion
                self._changed.notify_all()
            self._wait(portion)
        except BaseException:
            with self._changed:
                portion.waiting.clear()
            self._end_slots(kill=True)
            raise
        finally:
            with self._changed:
                self._portion = None
        self._pass_notes(portion)

    def max_parallel_runs(self, config: RunConfig) -> int:
        """The number of slots that could be open now."""
        gpu = config.device.startswith("cuda")
        resources = SlotResources(config.threads, gpu, config.workers)
        self._cluster.connect(resources, Path(config.results_dir))
        return len(self._cluster.slot_ids())

    def close(self, kill: bool) -> None:
        """Release all slots."""
        self._end_slots(kill)
        self._cluster.close(kill)

    # -- in the main thread ----------------------------------------------------------------------------------

    def _wait(self, portion: Portion) -> None:
        """Wait until all runs of a portion have ended; ends those for which no node is left."""
        no_slots_since: float | None = None
        while portion.unfinished:
            if portion.error is not None:
                raise portion.error
            self._start_threads(portion.unfinished)
            self._pass_notes(portion)
            with self._changed:
                no_slots_since = None if self._threads else no_slots_since or time.monotonic()
                self._changed.wait_for(lambda: not portion.unfinished or portion.error, POLL_S)
            if no_slots_since is not None and time.monotonic() - no_slots_since >= self._cluster.wait_s:
                self._give_up(portion)
        if portion.error is not None:
            raise portion.error

    def _give_up(self, portion: Portion) -> None:
        reason = "; ".join(dict.fromkeys(self._failures)) or "none joined"
        if not self._opened_any:
            raise ConfigError([Mistake("hydra/launcher", f"no slot could be opened: {reason}")])
        with self._changed:
            runs, portion.waiting = portion.waiting, []
        for run in runs:
            portion.started(run, "no node")
            lost_runs.write_result(run, WorkerExit("failed", "cluster", f"no node is left: {reason}"), None)
            self._ended(run, portion)

    def _start_threads(self, runs: int) -> None:
        """Start a thread for each slot that has none, at most as many threads as runs."""
        slot_ids = self._cluster.slot_ids()
        with self._changed:
            for slot_id in slot_ids:
                free = slot_id not in self._threads and slot_id not in self._retired
                if free and len(self._threads) < runs and not self._stopped:
                    thread = threading.Thread(
                        target=self._serve_slot, args=(slot_id,), name=slot_id, daemon=True
                    )
                    self._threads[slot_id] = thread
                    thread.start()

    def _pass_notes(self, portion: Portion) -> None:
        with self._changed:
            notes, self._notes = self._notes, []
        for text in notes:
            portion.note(text)

    def _end_slots(self, kill: bool) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            slots, threads = list(self._slots.values()), list(self._threads.values())
        if kill:
            for slot in slots:
                slot.close(kill=True)
        for thread in threads:
            thread.join(STOP_TIMEOUT_S)

    # -- in the thread of a slot -----------------------------------------------------------------------------

    def _serve_slot(self, slot_id: str) -> None:
        """Open the slot and execute runs in it; opens it again after a loss."""
        attempts = 0
        try:
            while attempts < MAX_OPEN_ATTEMPTS and self._has_work():
                slot: RemoteSlot | None = None
                try:
                    attempts += 1
                    slot = self._open(slot_id)
                    if slot is not None:
                        attempts = 0
                        self._execute_runs(slot)
                except SlotLostError as error:
                    self._record_failure(slot_id, str(error), attempts == MAX_OPEN_ATTEMPTS)
                except NodeRefusedError as error:
                    self._record_failure(slot_id, str(error), True)
                    self._note(f"{error}: it gets no runs")
                    return
                finally:
                    if slot is not None:
                        slot.close(kill=False)
        except BaseException as error:  # from a callback, for example: the main thread raises it
            with self._changed:
                if self._portion is not None:
                    self._portion.error = error
        finally:
            with self._changed:
                self._slots.pop(slot_id, None)
                self._settled.add(slot_id)
                self._threads.pop(slot_id, None)
                self._changed.notify_all()

    def _open(self, slot_id: str) -> RemoteSlot | None:
        try:
            slot = self._cluster.open(slot_id, lambda: not self._has_work())
            if slot is not None:
                with self._changed:
                    self._slots[slot_id] = slot
                    self._opened_any = True
                    first = self._first_runs[len(self._settled) % len(self._first_runs)]
                slot.warm_up(to_plain(first.job))
            return slot
        finally:
            with self._changed:
                self._settled.add(slot_id)
                self._changed.notify_all()

    def _has_work(self) -> bool:
        with self._changed:
            return not self._stopped and (self._portion is None or self._portion.unfinished > 0)

    def _execute_runs(self, slot: RemoteSlot) -> None:
        """Execute runs until none are left; raises SlotLostError, NodeRefusedError."""
        used_workers: set[WorkerKey] = set()
        while (item := self._next_run(used_workers)) is not None:
            run, portion = item
            used_workers.add(run.worker)
            self._execute_run(run, portion, slot)

    def _next_run(self, used_workers: set[WorkerKey]) -> tuple[PreparedRun, Portion] | None:
        """Wait for the next run and its portion; None when the engine closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or (self._portion and self._portion.waiting))
            if self._stopped or self._portion is None:
                return None
            return self._portion.pop(used_workers), self._portion

    def _execute_run(self, run: PreparedRun, portion: Portion, slot: RemoteSlot) -> None:
        concurrent_runs = slot.concurrent_runs
        placed = replace(run, job=replace(run.job, beside=concurrent_runs)) if concurrent_runs else run
        attempt = RemoteRun(placed, slot, portion, self._note)
        portion.started(placed, slot.name)
        try:
            attempt.execute()
        except WorkerDiedError as error:
            attempt.write_result(error.exit)
        except SlotLostError as error:
            if self._stopped:
                with contextlib.suppress(BlockingIOError):
                    attempt.write_result(lost_runs.INTERRUPTED, wait=False)
                self._ended(placed, portion)
            elif attempt.record_loss(error, self._retries):
                self._requeue(run, portion)
            else:
                self._ended(placed, portion)
            raise
        except NodeRefusedError:
            self._requeue(run, portion)
            raise
        self._ended(placed, portion)

    def _requeue(self, run: PreparedRun, portion: Portion) -> None:
        with self._changed:
            portion.waiting.insert(0, run)
            self._changed.notify_all()

    def _ended(self, run: PreparedRun, portion: Portion) -> None:
        portion.ended(run)
        with self._changed:
            portion.unfinished -= 1
            self._changed.notify_all()

    def _record_failure(self, slot_id: str, reason: str, retire: bool) -> None:
        with self._changed:
            self._failures.append(reason)
            if retire:
                self._retired.add(slot_id)

    def _note(self, text: str) -> None:
        """Keep a message for the main thread to pass on."""
        with self._changed:
            self._notes.append(text)
