"""A slot's warm workers: one of them executes a run at a time, the others wait for theirs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from harness.shell.engines import lost_runs
from harness.shell.engines.slots import SlotSpec
from harness.shell.runs.records import RunTask
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.process import Worker, WorkerDiedError


class WorkerSlot:
    """The workers of a slot, at most `max_workers`; the least recently used one is ended first."""

    def __init__(self, spec: SlotSpec, max_workers: int) -> None:
        self.spec, self.max_workers = spec, max_workers
        self.stopped = False
        self._workers: dict[WorkerKey, Worker] = {}
        self._programs: dict[WorkerKey, set[int]] = {}
        self._lock = threading.Lock()

    def has_worker(self, key: WorkerKey) -> bool:
        """Whether the slot has a worker with this key."""
        return key in self._workers

    def has_program(self, key: WorkerKey, program: int) -> bool:
        """Whether that worker has executed a run with the same program."""
        return program in self._programs.get(key, ())

    def ready(self) -> dict[WorkerKey, Worker]:
        """Wait for the workers; those that failed to start are left out."""
        workers = {}
        for key, worker in list(self._workers.items()):
            with contextlib.suppress(WorkerDiedError):  # recorded by the first run that needs the worker
                worker.wait_ready()
                workers[key] = worker
        return workers

    def worker(self, key: WorkerKey) -> Worker:
        """The worker with this key, started if necessary."""
        with self._lock:
            if self.stopped:
                raise WorkerDiedError(lost_runs.INTERRUPTED)
            worker = self._workers.pop(key, None)
            if worker is not None and worker.ready and not worker.alive:
                worker.close()  # killed while idle, so no run is to blame
                worker = None
            if worker is None:
                self._programs.pop(key, None)
                if len(self._workers) >= self.max_workers:
                    self._drop(next(iter(self._workers)))
                worker = Worker(self.spec.worker_key(key), self.spec.cores)
            self._workers[key] = worker
            return worker

    def run(self, run: RunTask, prunable: bool) -> Iterator[tuple[Worker, dict[str, Any]]]:
        """Execute a run; yields its events, each with the worker that sent it. Raises WorkerDiedError."""
        fresh = run.config.isolation == "fresh"
        if fresh:  # replaces a worker that an earlier portion of the sweep left warm
            self.drop(run.worker)
        worker = self.worker(run.worker)
        self._programs.setdefault(run.worker, set()).add(run.program)
        try:
            for event in worker.run(run.folder.path, run.config.force, run.config.timeout_s, prunable):
                yield worker, event
        except WorkerDiedError:
            self.drop(run.worker)
            raise
        # an error on a GPU may leave its context unusable
        suspect = run.config.device != "cpu" and run.folder.status() == "failed"
        if fresh or suspect:
            self.drop(run.worker)

    def drop(self, key: WorkerKey) -> None:
        """End a worker."""
        with self._lock:
            self._drop(key)

    def stop(self) -> None:
        """Kill all workers during a run; the slot's thread gets WorkerDiedError."""
        self.stopped = True
        with self._lock:
            for worker in self._workers.values():
                worker.kill()

    def close(self, kill: bool) -> None:
        """End all workers. During a run, call `stop` first: the slot's thread may drop a worker meanwhile."""
        with self._lock:
            workers, self._workers = self._workers, {}
        for worker in workers.values():
            worker.close(kill)

    def _drop(self, key: WorkerKey) -> None:
        self._programs.pop(key, None)
        if (worker := self._workers.pop(key, None)) is not None:
            worker.close()
