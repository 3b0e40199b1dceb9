"""What a person sees while runs go on: bars in a terminal, plain lines in a log.

It is told what happened and draws; a run is never slowed by it, because it lives in the shell's process and
the run in the worker's.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter(Protocol):
    """Hears of everything worth showing."""

    def begin(self, total: int, skipped: int) -> None:
        """A set of runs starts; `skipped` more were finished before."""
        ...

    def started(self, label: str, epochs: int) -> None:
        """A run starts."""
        ...

    def epoch(self, record: dict[str, Any]) -> None:
        """The current run has finished an epoch."""
        ...

    def ended(self, label: str, result: dict[str, Any]) -> None:
        """The current run has ended."""
        ...

    def note(self, text: str) -> None:
        """Something to know that belongs to no run."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


def reporter() -> Reporter:
    """Bars where standard error is a terminal, lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    return BarReporter(console) if console.is_terminal else LineReporter(console)


class LineReporter:
    """One line a run, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done = 0
        self._total = 0

    def begin(self, total: int, skipped: int) -> None:
        self._total += total
        self.note(plan_text(total, skipped))

    def started(self, label: str, epochs: int) -> None:
        pass  # the line comes when there is something to say

    def epoch(self, record: dict[str, Any]) -> None:
        pass  # one line a run is enough in a log; MLflow has the epochs

    def ended(self, label: str, result: dict[str, Any]) -> None:
        self._done += 1
        self.note(f"[{self._done}/{self._total}] {label}: {outcome_text(result)}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        sys.stderr.flush()


class BarReporter:
    """A bar for the whole and one for the run in progress, with failures printed above them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}"),
            console=console,
            transient=True,
        )
        self._all = self._bars.add_task("runs", total=0, info="")
        self._run = self._bars.add_task("", total=1, info="", visible=False)

    def begin(self, total: int, skipped: int) -> None:
        self.note(plan_text(total, skipped))
        self._bars.update(self._all, total=(self._bars.tasks[0].total or 0) + total, info="starting workers")
        self._bars.start()

    def started(self, label: str, epochs: int) -> None:
        self._bars.update(self._all, info="")
        self._bars.reset(self._run, description=label, total=epochs, info="", visible=True)

    def epoch(self, record: dict[str, Any]) -> None:
        metrics = record["metrics"]
        shown = [f"{name} {metrics[name]:.4g}" for name in ("val/loss", "val/accuracy") if name in metrics]
        self._bars.update(self._run, completed=record["epoch"], info="  ".join(shown))

    def ended(self, label: str, result: dict[str, Any]) -> None:
        self._bars.update(self._run, visible=False)
        self._bars.advance(self._all)
        if result["status"] != "finished":
            self.note(f"{label}: {outcome_text(result)}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bars.stop()


def plan_text(total: int, skipped: int) -> str:
    """What is about to be done."""
    if not skipped:
        return f"{_runs(total)} to do"
    done = f"{_runs(skipped)} finished before" + (" (force=true does them again)" if not total else "")
    return f"{_runs(total)} to do, {done}" if total else f"nothing to do: {done}"


def outcome_text(result: dict[str, Any]) -> str:
    """A run's result in one line."""
    if result["status"] != "finished":
        error = result.get("error") or {}
        return f"{result['status']}: {error.get('message', 'no reason known')}"
    metrics = result["metrics"]
    names = ("test/accuracy", "test/loss", "speed/step_ms")
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
