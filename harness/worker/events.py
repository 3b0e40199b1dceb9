"""What a worker tells the shell, a line of JSON an event; of short epochs several at a time.

Each line wakes the shell, which draws and logs on another core while the next epoch is being timed, and takes
caches and clock rate from it. Nobody can watch more than some twenty epochs a second, so the lines of shorter
epochs wait for each other. Nothing depends on them: an event is in the run's folder before it is told.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Emit = Callable[[Mapping[str, Any]], None]
"""Tells the shell an event; a task of the worker is given one."""
TOGETHER_S = 0.05
"""How long the events of epochs that are shorter than this wait for others."""


class Answers:
    """The pipe to the shell. With `at_once` nothing waits, as the shell has to answer each epoch."""

    def __init__(self, pipe: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.at_once = False
        self._pipe = pipe
        self._clock = clock
        self._waiting: list[str] = []
        self._told = -TOGETHER_S

    def emit(self, event: Mapping[str, Any]) -> None:
        """Tell an event, or keep it for a moment; where the shell is gone, the process ends."""
        self._waiting.append(json.dumps(event) + "\n")
        now = self._clock()
        short = event["event"] == "epoch" and event["train_s"] < TOGETHER_S
        if short and not self.at_once and now - self._told < TOGETHER_S:
            return
        self._told = now
        lines, self._waiting = self._waiting, []
        try:
            self._pipe.write("".join(lines))
            self._pipe.flush()
        except BrokenPipeError:  # the end of standard input is about to say so
            os._exit(0)
