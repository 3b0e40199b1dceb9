"""What a person sees while runs go on: bars in a terminal, plain lines in a log.

It is told what happened and draws; a run is never slowed by it, because it lives in the shell's process and
the run in the worker's. Calls come one at a time, from whichever slot's thread.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from harness.core.runs.run_folder import INTENDED
from harness.core.runs.warm_start import WarmStart

Better = Callable[[float, float], float]
SCORES: tuple[tuple[str, Better], ...] = (
    ("val/accuracy", max),
    ("val/loss", min),
)  # by which the best run is found, the first that is there
REDRAWS_PER_S = 4  # more would take from a run's cores what nobody sees
BESIDE_LABEL = 56  # columns of a line for its bar, counts and times


class Reporter(Protocol):
    """Hears of everything worth showing. Runs are told apart by an identifier."""

    def begin(self, epochs: int, runs: int, skipped: int) -> None:
        """A set of runs starts, with so many epochs altogether; `skipped` more were finished before."""
        ...

    def search(self, runs: int, epochs: int, objective: str, better: Better) -> None:
        """The sets of runs to come are batches of a search of so many runs of so many epochs; the best one is
        that whose objective is better than the others'."""
        ...

    def started(self, run: str, label: str, slot: str, epochs: int, before: int) -> None:
        """A run of so many epochs starts in a slot; one that it goes on from has trained `before` of them.
        Perhaps once more, where an attempt was lost."""
        ...

    def epoch(self, run: str, record: Mapping[str, Any]) -> None:
        """A run has finished an epoch."""
        ...

    def ended(self, run: str, result: Mapping[str, Any]) -> None:
        """A run has ended."""
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


class _Best:
    """The run that did best on its validation rows, of those that were found comparable: a sweep over several
    data sets has no best run."""

    def __init__(self, scores: tuple[tuple[str, Better], ...] = SCORES) -> None:
        self._scores = scores
        self._score = ""
        self._value = math.nan
        self._label = ""

    def see(self, label: str, result: Mapping[str, Any]) -> None:
        """Take a run that ended into account."""
        metrics = result.get("metrics") or {}
        name, better = next(((n, f) for n, f in self._scores if n in metrics), ("", max))
        value = metrics.get(name, math.nan)
        if result["status"] != "finished" or math.isnan(value) or (self._score and name != self._score):
            return
        if not self._label or (value != self._value and better(value, self._value) == value):
            self._score, self._value, self._label = name, value, label

    def __str__(self) -> str:
        return f"best {self._score} {self._value:.4g}: {self._label}" if self._label else ""


class LineReporter:
    """One line a run, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done = 0
        self._total = 0
        self._labels: dict[str, str] = {}
        self._best = _Best()
        self._searches = False

    def begin(self, epochs: int, runs: int, skipped: int) -> None:
        if self._searches:
            self._done += skipped
            return
        self._total += runs
        self.note(plan_text(runs, skipped))

    def search(self, runs: int, epochs: int, objective: str, better: Better) -> None:
        self._searches, self._total = True, runs

    def started(self, run: str, label: str, slot: str, epochs: int, before: int) -> None:
        self._labels[run] = label  # the line comes when there is something to say

    def epoch(self, run: str, record: Mapping[str, Any]) -> None:
        pass  # one line a run is enough in a log; MLflow has the epochs

    def ended(self, run: str, result: Mapping[str, Any]) -> None:
        self._done += 1
        label = self._labels.pop(run)
        self._best.see(label, result)
        self.note(f"[{self._done}/{self._total}] {label}: {outcome_text(result)}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._done > 1 and not self._searches and (best := str(self._best)):
            self.note(best)
        sys.stderr.flush()


class BarReporter:
    """A bar for the whole, with the time left, and one for each slot, with failures printed above them."""

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
        self._best = _Best()
        self._runs = self._done = 0
        self._of_search = 0  # epochs of a run of a search

    def begin(self, epochs: int, runs: int, skipped: int) -> None:
        if self._of_search:  # whose total is known
            self._done += skipped
            self._pace.leap(skipped * self._of_search)
            self._bars.advance(self._all, skipped * self._of_search)
            self._count()
            return
        self.note(plan_text(runs, skipped))
        self._runs += runs
        total = (self._bars.tasks[0].total or 0) + epochs
        self._bars.update(self._all, total=total, info="starting workers")
        self._count()
        self._bars.start()

    def search(self, runs: int, epochs: int, objective: str, better: Better) -> None:
        self._best = _Best(((objective, better),))
        self._runs, self._of_search = runs, epochs
        self._bars.update(self._all, total=runs * epochs, info="starting workers")
        self._count()
        self._bars.start()

    def started(self, run: str, label: str, slot: str, epochs: int, before: int) -> None:
        lost = self._running.pop(run, None)
        if lost is not None:  # an attempt whose epochs are to be done again
            self._hide(lost)
            self._bars.advance(self._all, before - lost.done)
        if slot not in self._slots:
            self._slots[slot] = self._bars.add_task("", count="", info="", pace=None)
        row = self._slots[slot]
        self._running[run] = _Running(label, row, epochs, before)
        self._pace.begin()
        self._bars.update(self._all, info="")
        shown = Text(label)
        shown.truncate(max(20, self._console.width - BESIDE_LABEL), overflow="ellipsis")
        count = f"{before}/{epochs}"
        self._bars.reset(
            row, description=str(shown), total=epochs, completed=before, count=count, info="", pace=None
        )
        self._bars.update(row, visible=True)

    def epoch(self, run: str, record: Mapping[str, Any]) -> None:
        running, metrics = self._running[run], record["metrics"]
        shown = (f"{name} {metrics[name]:.4g}" for name, _ in SCORES if name in metrics)
        epoch = int(record["epoch"])
        if epoch - running.done != 1:
            self._pace.leap(epoch - running.done - 1)
        self._bars.advance(self._all, epoch - running.done)
        running.done = epoch
        count, info = f"{epoch}/{running.epochs}", next(shown, "")
        self._bars.update(running.row, completed=epoch, count=count, info=info)

    def ended(self, run: str, result: Mapping[str, Any]) -> None:
        running = self._running.pop(run)
        self._hide(running)
        self._pace.leap(running.epochs - running.done)  # those that a failure leaves undone took no time
        self._bars.advance(self._all, running.epochs - running.done)
        self._done += 1
        self._count()
        self._best.see(running.label, result)
        self._bars.best = str(self._best) if self._done > 1 else ""
        if result["status"] not in INTENDED:
            self.note(f"{running.label}: {outcome_text(result)}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bars.stop()
        if self._done > 1 and not self._of_search and (best := str(self._best)):
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
    """The bars, and below them the best run so far."""

    best = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.best:
            yield Text(self.best, style="dim", no_wrap=True, overflow="ellipsis")


class _Running:
    """A run in progress: its name, its line, and how far it is."""

    def __init__(self, label: str, row: TaskID, epochs: int, done: int) -> None:
        self.label, self.row, self.epochs, self.done = label, row, epochs, done


class _Pace:
    """How long an epoch takes all slots together, from when the first run began: that runs go on beside each
    other, and what one costs besides its epochs, is in it."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._leapt = 0

    def begin(self) -> None:
        """The first run begins; those after it change nothing."""
        self._begun = self._begun or time.monotonic()

    def leap(self, epochs: int) -> None:
        """So many epochs count as done that nobody trained."""
        self._leapt += epochs

    def left_s(self, done: float, total: float) -> float | None:
        """The time that is left, None where nothing is known yet."""
        trained = done - self._leapt
        if self._begun is None or trained <= 0:
            return None
        return (total - done) * (time.monotonic() - self._begun) / trained


class _TimeLeft(ProgressColumn):
    """The time left for the whole; single runs have none, theirs is short."""

    def render(self, task: Task) -> Text:
        """Minutes and seconds, or hours."""
        pace: _Pace | None = task.fields["pace"]
        left = None if pace is None else pace.left_s(task.completed, task.total or 0)
        if left is None:
            return Text("")
        minutes, seconds = divmod(math.ceil(left), 60)
        hours, minutes = divmod(minutes, 60)
        text = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return Text(f"{text} left", style="progress.remaining")


def plan_text(total: int, skipped: int) -> str:
    """What is about to be done."""
    if not skipped:
        return f"{_runs(total)} to do"
    done = f"{_runs(skipped)} finished before" + (" (force=true does them again)" if not total else "")
    return f"{_runs(total)} to do, {done}" if total else f"nothing to do: {done}"


def outcome_text(result: Mapping[str, Any]) -> str:
    """A run's result in one line."""
    if result["status"] not in INTENDED:
        error = result.get("error") or {}
        return f"{result['status']}: {error.get('message', 'no reason known')}"
    metrics = result["metrics"]
    pruned = result["status"] == "pruned"
    names = ("val/accuracy", "val/loss") if pruned else ("test/accuracy", "test/loss", "speed/step_ms")
    shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
    return f"pruned at {shown}" if pruned else shown


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def start_text(start: WarmStart) -> str:
    """Where a run's weights come from, in words; empty for a run that starts with new ones."""
    parts = []
    if start.from_run is not None:
        epochs = f" after its {start.epochs} epochs" if start.resume else ""
        parts.append(f"{'resuming' if start.resume else 'starting from'} run {start.from_run}{epochs}")
        parts.append(f"weights taken: {', '.join(start.taken) or 'none'}")
        parts += [f"initialised: {', '.join(start.new)}"] if start.new else []
    if start.frozen:
        parts.append(f"frozen: {', '.join(start.frozen)}")
    return "; ".join(parts)
