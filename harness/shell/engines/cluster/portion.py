"""The runs of one call of `ClusterEngine.execute`, and the callbacks that report on them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from harness.shell.engines.protocol import Listener, ShouldContinue
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.key import WorkerKey


class Portion:
    """The runs of one call. The engine's lock guards the attributes; callbacks are serialised here."""

    def __init__(
        self, runs: Sequence[PreparedRun], listener: Listener, should_continue: ShouldContinue | None
    ) -> None:
        self.waiting = list(runs)
        self.unfinished = len(runs)
        self.losses: dict[str, int] = {}  # how often the slot of a run was lost, by run id
        self.error: BaseException | None = None  # raised by a callback in a slot's thread
        self._listener, self._should_continue = listener, should_continue
        self._callback_lock = threading.Lock()

    @property
    def prunable(self) -> bool:
        """Whether `should_continue` decides after each epoch."""
        return self._should_continue is not None

    def pop(self, used_workers: set[WorkerKey]) -> PreparedRun:
        """Remove the next run, preferably one for a worker that the slot has used."""
        waiting = self.waiting
        return waiting.pop(min(range(len(waiting)), key=lambda n: (waiting[n].worker not in used_workers, n)))

    def started(self, run: PreparedRun, slot: str) -> None:
        """Report that a slot starts a run."""
        with self._callback_lock:
            self._listener.started(run, slot)

    def event(self, run: PreparedRun, event: Mapping[str, Any]) -> bool | None:
        """Report an event; after an epoch of a prunable run, returns whether it continues, else None."""
        with self._callback_lock:
            self._listener.event(run, event)
            if self._should_continue is None or event["event"] != "epoch":
                return None
            return self._should_continue(run, event)

    def ended(self, run: PreparedRun) -> None:
        """Report the result in the run's folder."""
        with self._callback_lock:
            self._listener.ended(run, run.folder.result() or {})

    def note(self, text: str) -> None:
        """Pass a message to the user."""
        with self._callback_lock:
            self._listener.note(text)
