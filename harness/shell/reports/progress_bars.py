"""Progress bars for a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from harness.core.runs.run_folder import INTENDED
from harness.shell.reports.progress_text import SCORES, BestRun, Better, outcome_text, plan_text

REDRAWS_PER_S = 4  # more would cost the runs CPU time without a visible difference
COLUMNS_AFTER_LABEL = 56  # of a line, for its bar, counts and times


class BarReporter:
    """Draws a bar for the whole command, with the time left, and one per slot; prints failures above them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = _Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[count]}"),
            _TimeLeft(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[info]}"),
            console=console,
            transient=True,
            refresh_per_second=REDRAWS_PER_S,
        )
        self._all = self._bars.add_task("runs", total=0, count="", info="", pace=_Pace())
        self._slots: dict[str, TaskID] = {}
        self._running: dict[str, _Running] = {}
        self._best = BestRun()
        self._runs = self._done = 0
        self._search_epochs = 0  # per run of a search

    def begin(self, epochs: int, runs: int, skipped: int) -> None:
        if self._search_epochs:  # the total is set already
            self._done += skipped
            self._pace.skip(skipped * self._search_epochs)
            self._bars.advance(self._all, skipped * self._search_epochs)
            self._count()
            return
        self.note(plan_text(runs, skipped))
        self._runs += runs
        total = (self._bars.tasks[0].total or 0) + epochs
        self._bars.update(self._all, total=total, info="starting workers")
        self._count()
        self._bars.start()

    def search(self, runs: int, epochs: int, objective: str, better: Better) -> None:
        self._best = BestRun(((objective, better),))
        self._runs, self._search_epochs = runs, epochs
        self._bars.update(self._all, total=runs * epochs, info="starting workers")
        self._count()
        self._bars.start()

    def started(self, run: str, label: str, slot: str, epochs: int, before: int) -> None:
        lost = self._running.pop(run, None)
        if lost is not None:  # an attempt whose epochs are repeated
            self._hide(lost)
            self._bars.advance(self._all, before - lost.done)
        if slot not in self._slots:
            self._slots[slot] = self._bars.add_task("", count="", info="", pace=None)
        row = self._slots[slot]
        self._running[run] = _Running(label, row, epochs, before)
        self._pace.begin()
        self._bars.update(self._all, info="")
        shown = Text(label)
        shown.truncate(max(20, self._console.width - COLUMNS_AFTER_LABEL), overflow="ellipsis")
        count = f"{before}/{epochs}"
        self._bars.reset(
            row, description=str(shown), total=epochs, completed=before, count=count, info="", pace=None
        )
        self._bars.update(row, visible=True)

    def epoch(self, run: str, record: Mapping[str, Any]) -> None:
        running, metrics = self._running[run], record["metrics"]
        scores = (f"{name} {metrics[name]:.4g}" for name, _ in SCORES if name in metrics)
        epoch = int(record["epoch"])
        if epoch - running.done != 1:
            self._pace.skip(epoch - running.done - 1)
        self._bars.advance(self._all, epoch - running.done)
        running.done = epoch
        count, info = f"{epoch}/{running.epochs}", next(scores, "")
        self._bars.update(running.row, completed=epoch, count=count, info=info)

    def ended(self, run: str, result: Mapping[str, Any]) -> None:
        running = self._running.pop(run)
        self._hide(running)
        self._pace.skip(running.epochs - running.done)  # epochs that a failure left out took no time
        self._bars.advance(self._all, running.epochs - running.done)
        self._done += 1
        self._count()
        self._best.update(running.label, result)
        self._bars.best = str(self._best) if self._done > 1 else ""
        if result["status"] not in INTENDED:
            self.note(f"{running.label}: {outcome_text(result)}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bars.stop()
        if self._done > 1 and not self._search_epochs and (best := str(self._best)):
            self.note(best)

    @property
    def _pace(self) -> _Pace:
        pace: _Pace = self._bars.tasks[0].fields["pace"]
        return pace

    def _count(self) -> None:
        self._bars.update(self._all, count=f"{self._done}/{self._runs}")

    def _hide(self, running: _Running) -> None:
        self._bars.update(running.row, visible=False)


class _Bars(Progress):
    """The bars, with the best run so far below them."""

    best = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.best:
            yield Text(self.best, style="dim", no_wrap=True, overflow="ellipsis")


class _Running:
    """A run in progress: its label, its bar, and its epochs."""

    def __init__(self, label: str, row: TaskID, epochs: int, done: int) -> None:
        self.label, self.row, self.epochs, self.done = label, row, epochs, done


class _Pace:
    """The time per epoch over all slots, since the first run began, so that it includes parallel runs and the
    time that runs need besides their epochs."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._skipped = 0

    def begin(self) -> None:
        """Note the time when the first run begins; later calls change nothing."""
        self._begun = self._begun or time.monotonic()

    def skip(self, epochs: int) -> None:
        """Count epochs as done that were not trained."""
        self._skipped += epochs

    def left_s(self, done: float, total: float) -> float | None:
        """Estimate the remaining time; None before the first epoch."""
        trained = done - self._skipped
        if self._begun is None or trained <= 0:
            return None
        return (total - done) * (time.monotonic() - self._begun) / trained


class _TimeLeft(ProgressColumn):
    """The time left for the whole command; the bars of single runs have none, because those are short."""

    def render(self, task: Task) -> Text:
        """Format minutes and seconds, with hours if needed."""
        pace: _Pace | None = task.fields["pace"]
        left = None if pace is None else pace.left_s(task.completed, task.total or 0)
        if left is None:
            return Text("")
        minutes, seconds = divmod(math.ceil(left), 60)
        hours, minutes = divmod(minutes, 60)
        text = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return Text(f"{text} left", style="progress.remaining")
