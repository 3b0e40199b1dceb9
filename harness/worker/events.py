"""The events that a worker sends to the shell: one JSON line each; short epochs are sent in batches.

Each line wakes the shell, which draws and logs on another core while the next epoch is timed, and so takes
caches and clock rate from it. A user cannot follow more than about twenty epochs per second, so the events
of shorter epochs are held back and sent together. None are lost: an event is written to the run's folder
before it is sent.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Emit = Callable[[Mapping[str, Any]], None]
"""Sends an event to the shell."""
BATCH_S = 0.05
"""The events of epochs shorter than this are sent at most once per this time."""


class EventPipe:
    """The pipe to the shell. With `immediate` no event is held back, as the shell answers every epoch."""

    def __init__(self, pipe: TextIO) -> None:
        self.immediate = False
        self._pipe = pipe
        self._lines: list[str] = []
        self._last_write_s = -BATCH_S

    def emit(self, event: Mapping[str, Any]) -> None:
        """Send an event, or hold it back for a moment; ends the process if the shell is gone."""
        self._lines.append(json.dumps(event) + "\n")
        now = time.monotonic()
        short = event["event"] == "epoch" and event["train_s"] < BATCH_S
        if short and not self.immediate and now - self._last_write_s < BATCH_S:
            return
        self._last_write_s = now
        lines, self._lines = self._lines, []
        try:
            self._pipe.write("".join(lines))
            self._pipe.flush()
        except BrokenPipeError:  # standard input is about to end too
            os._exit(0)
