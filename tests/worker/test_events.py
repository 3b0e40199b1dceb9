"""How a worker's events reach the shell."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from harness.worker.events import BATCH_S, EventPipe

SHORT = {"event": "epoch", "train_s": BATCH_S / 10}
LONG = {"event": "epoch", "train_s": 2 * BATCH_S}


class Line:
    """A pipe, the end that is read, and a clock that stands still until it is set."""

    def __init__(self) -> None:
        self._read, written = os.pipe()
        os.set_blocking(self._read, False)
        self.now = 0.0
        self.pipe = EventPipe(os.fdopen(written, "w"), lambda: self.now)

    def told(self) -> list[Any]:
        """What has come since the last time."""
        try:
            return [json.loads(line) for line in os.read(self._read, 2**16).splitlines()]
        except BlockingIOError:
            return []


@pytest.fixture
def line() -> Iterator[Line]:
    yield Line()


def test_short_epochs_come_together(line: Line) -> None:
    """Catches: a shell that is woken up for each epoch of 2 ms, an epoch that is lost or out of order."""
    numbered = [SHORT | {"epoch": number} for number in range(4)]
    line.pipe.emit(numbered[0])
    assert line.told() == numbered[:1]
    line.now = 0.5 * BATCH_S
    line.pipe.emit(numbered[1])
    line.pipe.emit(numbered[2])
    assert line.told() == []
    line.now = 1.5 * BATCH_S
    line.pipe.emit(numbered[3])
    assert line.told() == numbered[1:]


@pytest.mark.parametrize("event", [LONG, {"event": "ended"}, {"event": "started"}])
def test_anything_else_comes_at_once(line: Line, event: dict[str, Any]) -> None:
    """Catches: a run whose end is not heard of, a long epoch that is told when the next one has ended."""
    line.pipe.emit(SHORT)
    line.pipe.emit(SHORT)
    line.pipe.emit(event)
    assert line.told() == [SHORT, SHORT, event]


def test_what_is_to_be_judged_comes_at_once(line: Line) -> None:
    """Catches: a worker that waits for an answer to what it has not told."""
    line.pipe.immediate = True
    for _ in range(3):
        line.pipe.emit(SHORT)
        assert line.told() == [SHORT]
