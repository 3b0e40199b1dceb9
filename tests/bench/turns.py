"""A benchmark's child process: it trains one epoch when it is told to, and says how long that took.

The parent writes a line for each turn, the child answers with a line of JSON. In between it sleeps, so that
of several children only one is at work.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

from harness.core.machine.timing import ClockReading


class Turns:
    """The turns that this process gets: iterate over it, and in each turn call `start`, `stop`, `done`.

    `start` and `stop` enclose the training alone, as the worker does it; `done` also reports the time since
    the turn began, in which nothing can hide. Who makes a network of its own puts the number of its trained
    numbers into `parameters`.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
        os.dup2(2, 1)  # what a framework prints must not get between the answers
        self.parameters = 0
        self._begun = 0.0
        self._start = self._passed = ClockReading(0.0, 0.0, 0)

    def __iter__(self) -> Iterator[Turns]:
        while True:
            self.wait()
            yield self

    def wait(self) -> None:
        """Sleep until it is our turn; ends the process where there will be no more."""
        if not self._commands.readline():
            os._exit(0)
        self._begun = time.perf_counter()

    def start(self) -> None:
        """The training begins."""
        self._start = ClockReading.now()

    def stop(self) -> None:
        """The training is over, on the device too."""
        self._passed = ClockReading.now().since(self._start)

    def done(self, loss: float) -> None:
        """The epoch is over; `loss` is its mean."""
        whole_s = time.perf_counter() - self._begun
        passed = self._passed
        self.report(passed.wall_s, whole_s, passed.cpu_s, passed.switches, loss)

    def elapsed_s(self) -> float:
        """The time since this turn began."""
        return time.perf_counter() - self._begun

    def report(self, train_s: float, whole_s: float, cpu_s: float, switches: int, loss: float) -> None:
        """Answer with times that were taken elsewhere."""
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
        """Answer with a rate, who trains nothing."""
        self._answer({"gflops": gflops})

    def refuse(self, reason: str) -> None:
        """Answer that the framework does not do what this side is asked for."""
        self._answer({"refused": reason})

    def _answer(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
