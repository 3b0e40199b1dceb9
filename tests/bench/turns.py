"""A benchmark's child process: it trains one epoch per turn and reports how long that took.

The parent writes a line for each turn; the child replies with a line of JSON. In between it sleeps, so that
only one of several children works at a time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

from harness.core.machine.timing import ClockReading


class Turns:
    """The turns of this process: iterate over it, and in each turn call `start`, `stop`, `done`.

    `start` and `stop` enclose the training alone, as in the worker; `done` also reports the time since the
    turn began, which includes everything. A side with its own network sets `parameters` to its number of
    trained parameters.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
        os.dup2(2, 1)  # a framework's output must not mix with the replies
        self.parameters = 0
        self._begun = 0.0
        self._start = self._passed = ClockReading(0.0, 0.0, 0)

    def __iter__(self) -> Iterator[Turns]:
        while True:
            self.wait()
            yield self

    def wait(self) -> None:
        """Sleep until the next turn; end the process if there is none."""
        if not self._commands.readline():
            os._exit(0)
        self._begun = time.perf_counter()

    def start(self) -> None:
        """Mark the start of the training."""
        self._start = ClockReading.now()

    def stop(self) -> None:
        """Mark the end of the training, after the device is synchronised."""
        self._passed = ClockReading.now().since(self._start)

    def done(self, loss: float) -> None:
        """Report the end of the epoch; `loss` is its mean."""
        whole_s = time.perf_counter() - self._begun
        passed = self._passed
        self.report(passed.wall_s, whole_s, passed.cpu_s, passed.switches, loss)

    def elapsed_s(self) -> float:
        """The time since this turn began."""
        return time.perf_counter() - self._begun

    def report(self, train_s: float, whole_s: float, cpu_s: float, switches: int, loss: float) -> None:
        """Reply with times that were measured elsewhere."""
        answer: dict[str, Any] = {
            "train_s": train_s,
            "whole_s": whole_s,
            "cpu_s": cpu_s,
            "switches": switches,
            "loss": loss,
            "parameters": self.parameters,
        }
        self._answer(answer)

    def rate(self, gflops: float) -> None:
        """Reply with a rate instead of a training."""
        self._answer({"gflops": gflops})

    def refuse(self, reason: str) -> None:
        """Reply that the framework refuses the execution."""
        self._answer({"refused": reason})

    def _answer(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
