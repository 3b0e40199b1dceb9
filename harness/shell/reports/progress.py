"""Progress while runs execute: bars in a terminal, plain lines in a log.

Reporters live in the shell's process and runs in the workers', so drawing never slows a run. Calls come one
at a time, from the thread of any slot.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console

from harness.shell.reports.progress_bars import BarReporter
from harness.shell.reports.progress_text import BestRun, Better, outcome_text, plan_text


class Reporter(Protocol):
    """Receives progress of a command. Runs are identified by their run id."""

    def begin(self, epochs: int, runs: int, skipped: int) -> None:
        """A set of runs starts, with `epochs` in total; `skipped` more runs were finished before."""
        ...

    def search(self, runs: int, epochs: int, objective: str, better: Better) -> None:
        """The following sets of runs are batches of a search with `runs` runs of `epochs` epochs each;
        `better` picks the better of two values of the objective."""
        ...

    def started(self, run: str, label: str, slot: str, epochs: int, before: int) -> None:
        """A run of `epochs` epochs starts in a slot; a resumed one has trained `before` of them already.
        Called again if an attempt was lost."""
        ...

    def epoch(self, run: str, record: Mapping[str, Any]) -> None:
        """A run has finished an epoch."""
        ...

    def ended(self, run: str, result: Mapping[str, Any]) -> None:
        """A run has ended."""
        ...

    def note(self, text: str) -> None:
        """Print a message that belongs to no run."""
        ...

    def close(self) -> None:
        """End the display."""
        ...


def reporter() -> Reporter:
    """Create a reporter: bars if standard error is a terminal, lines otherwise."""
    console = Console(stderr=True, highlight=False)
    return BarReporter(console) if console.is_terminal else LineReporter(console)


class LineReporter:
    """Prints one line per run, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done = 0
        self._total = 0
        self._labels: dict[str, str] = {}
        self._best = BestRun()
        self._is_search = False

    def begin(self, epochs: int, runs: int, skipped: int) -> None:
        if self._is_search:
            self._done += skipped
            return
        self._total += runs
        self.note(plan_text(runs, skipped))

    def search(self, runs: int, epochs: int, objective: str, better: Better) -> None:
        self._is_search, self._total = True, runs

    def started(self, run: str, label: str, slot: str, epochs: int, before: int) -> None:
        self._labels[run] = label  # printed when the run has ended

    def epoch(self, run: str, record: Mapping[str, Any]) -> None:
        pass  # a log needs one line per run; MLflow has the epochs

    def ended(self, run: str, result: Mapping[str, Any]) -> None:
        self._done += 1
        label = self._labels.pop(run)
        self._best.update(label, result)
        self.note(f"[{self._done}/{self._total}] {label}: {outcome_text(result)}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._done > 1 and not self._is_search and (best := str(self._best)):
            self.note(best)
        sys.stderr.flush()
