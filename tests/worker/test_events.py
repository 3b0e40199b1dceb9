"""The pipe through which a worker sends its events to the shell."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from harness.worker import events
from harness.worker.events import BATCH_S, EventPipe

SHORT = {"event": "epoch", "train_s": BATCH_S / 10}
LONG = {"event": "epoch", "train_s": 2 * BATCH_S}


class Line:
    """A pipe, its read end, and a clock that stands still until it is set."""

    def __init__(self) -> None:
        self._read, written = os.pipe()
        os.set_blocking(self._read, False)
        self.now = 0.0
        self.pipe = EventPipe(os.fdopen(written, "w"))

    def received(self) -> list[Any]:
        """The events that have arrived since the last call."""
        try:
            return [json.loads(line) for line in os.read(self._read, 2**16).splitlines()]
        except BlockingIOError:
            return []


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    line = Line()
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: line.now))
    return line


def test_short_epochs_are_sent_in_batches(line: Line) -> None:
    """Catches: a shell that wakes up for each epoch of 2 ms; an epoch that is lost or out of order."""
    numbered = [SHORT | {"epoch": number} for number in range(4)]
    line.pipe.emit(numbered[0])
    assert line.received() == numbered[:1]
    line.now = 0.5 * BATCH_S
    line.pipe.emit(numbered[1])
    line.pipe.emit(numbered[2])
    assert line.received() == []
    line.now = 1.5 * BATCH_S
    line.pipe.emit(numbered[3])
    assert line.received() == numbered[1:]


@pytest.mark.parametrize("event", [LONG, {"event": "ended"}, {"event": "started"}])
def test_other_events_are_sent_at_once(line: Line, event: dict[str, Any]) -> None:
    """Catches: a run whose end never arrives; a long epoch that is held back until the next one has ended."""
    line.pipe.emit(SHORT)
    line.pipe.emit(SHORT)
    line.pipe.emit(event)
    assert line.received() == [SHORT, SHORT, event]


def test_events_of_prunable_runs_are_sent_at_once(line: Line) -> None:
    """Catches: a worker that waits for an answer to an event that it has not sent."""
    line.pipe.immediate = True
    for _ in range(3):
        line.pipe.emit(SHORT)
        assert line.received() == [SHORT]
