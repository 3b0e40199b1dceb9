"""Progress in words: plans, results, where weights come from, and the best run so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from harness.core.runs.run_folder import INTENDED
from harness.core.runs.warm_start import WarmStart

Better = Callable[[float, float], float]
SCORES: tuple[tuple[str, Better], ...] = (("val/accuracy", max), ("val/loss", min))
"""Metrics that rank runs, the preferred one first."""


class BestRun:
    """The run with the best validation score among comparable ones: those with the same score metric."""

    def __init__(self, scores: tuple[tuple[str, Better], ...] = SCORES) -> None:
        self._scores = scores
        self._score = ""
        self._value = math.nan
        self._label = ""

    def update(self, label: str, result: Mapping[str, Any]) -> None:
        """Compare a run that has ended with the best one so far."""
        metrics = result.get("metrics") or {}
        name, better = next(((n, f) for n, f in self._scores if n in metrics), ("", max))
        value = metrics.get(name, math.nan)
        if result["status"] != "finished" or math.isnan(value) or (self._score and name != self._score):
            return
        if not self._label or (value != self._value and better(value, self._value) == value):
            self._score, self._value, self._label = name, value, label

    def __str__(self) -> str:
        return f"best {self._score} {self._value:.4g}: {self._label}" if self._label else ""


def plan_text(total: int, skipped: int) -> str:
    """Describe what is about to run."""
    if not skipped:
        return f"{_runs(total)} to do"
    done = f"{_runs(skipped)} finished before" + (" (force=true does them again)" if not total else "")
    return f"{_runs(total)} to do, {done}" if total else f"nothing to do: {done}"


def outcome_text(result: Mapping[str, Any]) -> str:
    """Format a run's result in one line."""
    if result["status"] not in INTENDED:
        error = result.get("error") or {}
        return f"{result['status']}: {error.get('message', 'no reason known')}"
    metrics = result["metrics"]
    pruned = result["status"] == "pruned"
    names = ("val/accuracy", "val/loss") if pruned else ("test/accuracy", "test/loss", "speed/step_ms")
    shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
    return f"pruned at {shown}" if pruned else shown


def start_text(start: WarmStart) -> str:
    """Describe where a run's weights come from; empty for a run that starts with new ones."""
    parts = []
    if start.from_run is not None:
        epochs = f" after its {start.epochs} epochs" if start.resume else ""
        parts.append(f"{'resuming' if start.resume else 'starting from'} run {start.from_run}{epochs}")
        parts.append(f"weights taken: {', '.join(start.taken) or 'none'}")
        parts += [f"initialised: {', '.join(start.new)}"] if start.new else []
    if start.frozen:
        parts.append(f"frozen: {', '.join(start.frozen)}")
    return "; ".join(parts)


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
