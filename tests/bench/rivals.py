"""Comparison with Keras `fit`, Lightning, skorch and Ignite: same network, data, batch size and thread.

    python -m tests.bench.rivals [--json] [--only lstm] [--seconds 20]

All architectures on digits, batch 32, Adam, float32, one thread. Every side has its own process, and they run
in turns, one epoch each. evenbench runs the fastest execution, found by a short comparison, of torch and of
all frameworks. The others run as in their own tutorials (tests/bench/rivals_torch.py,
tests/bench/bare_fit.py), with logging, checkpoints, progress bars and validation switched off.

Times are of whole epochs divided by their steps, including creating the order, loading the batches, reading
the losses and writing the event. Ratios are of paired epochs, with their interval. The other libraries are
installed by `pip install 'evenbench[bench]'`.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.core.machine import statistics
from harness.core.machine.statistics import Interval
from tests.bench.best import fastest
from tests.bench.comparison import Side, measure_in_turns, whole_s
from tests.bench.overhead import MODELS, interval, selected
from tests.bench.report import Report, Table, command, plain, say


@dataclass(frozen=True)
class Rival:
    """Another trainer: its name, the framework whose data and environment it gets, its script."""

    name: str
    framework: str
    execution: str
    script: str
    package: str

    @property
    def missing(self) -> bool:
        """Whether it is not installed."""
        return importlib.util.find_spec(self.package) is None

    def side(self, model: str) -> Side:
        """The trainer as a side of a comparison."""
        return Side(self.framework, self.execution, self.script, model)


RIVALS = (
    Rival("Keras fit, TensorFlow", "keras", "idiomatic", "bare_keras", "tensorflow"),
    Rival("Keras fit, JAX", "keras_jax", "idiomatic", "bare_keras_jax", "jax"),
    Rival("Keras fit, torch", "keras_torch", "idiomatic", "bare_keras_torch", "torch"),
    Rival("Lightning", "torch", "lightning", "rivals_torch", "lightning"),
    Rival("skorch", "torch", "skorch", "rivals_torch", "skorch"),
    Rival("Ignite", "torch", "ignite", "rivals_torch", "ignite"),
)
HOW = "not installed: pip install 'evenbench[bench]'"


@dataclass(frozen=True)
class Row:
    """A trainer's step in µs, and its ratios to evenbench's step.

    `torch` is the fastest execution of torch, `best` the fastest of all, each with its step in µs.
    """

    model: str
    rival: str
    step_us: float
    torch: str
    torch_step_us: float
    than_torch: Interval
    best: str
    best_step_us: float
    than_best: Interval


def measure_rivals(only: str = "", seconds: float = 20.0) -> Report:
    """Measure all architectures; `only` selects some."""
    present = [rival for rival in RIVALS if not rival.missing]
    rows: list[Row] = []
    models = [model for model in MODELS if selected(only, model)]
    with tempfile.TemporaryDirectory(prefix="rivals-") as name:
        for model in models:
            say(f"{model}: the fastest executions")
            best = fastest(model, Path(name, model, "fastest"))
            of_torch, of_all = best["torch"], next(iter(best.values()))
            ours = list(dict.fromkeys((of_torch, of_all)))
            say(f"{model}: {', '.join(side.label for side in ours)} against {len(present)} others")
            sides = [*ours, *(rival.side(model) for rival in present)]
            result = measure_in_turns(sides, Path(name, model, "contest"), seconds)
            times = [whole_s(epochs) for epochs in result.epochs]
            torch_s, best_s = times[0], times[len(ours) - 1]
            for rival, theirs in zip(present, times[len(ours) :], strict=True):
                step_us = [1e6 * statistics.median(each) / result.steps for each in (theirs, torch_s, best_s)]
                than_torch, than_best = statistics.ratio(theirs, torch_s), statistics.ratio(theirs, best_s)
                row = Row(
                    model=model,
                    rival=rival.name,
                    step_us=step_us[0],
                    torch=of_torch.label,
                    torch_step_us=step_us[1],
                    than_torch=than_torch,
                    best=of_all.label,
                    best_step_us=step_us[2],
                    than_best=than_best,
                )
                rows.append(row)
    missing = [rival.name for rival in RIVALS if rival.missing]
    values = {"rivals": [plain(row) for row in rows], "missing": missing}
    return Report(values, (_table(rows, models),))


def _table(rows: list[Row], models: list[str]) -> Table:
    columns = (
        "model",
        "",
        "µs/step",
        "times torch's best [95 %]",
        "torch's best, µs",
        "times the best [95 %]",
        "the best, µs",
        "ahead",
    )
    cells = [
        (
            row.model,
            row.rival,
            f"{row.step_us:.1f}",
            interval(row.than_torch),
            f"{row.torch} {row.torch_step_us:.1f}",
            interval(row.than_best),
            f"{row.best} {row.best_step_us:.1f}",
            "yes" if row.than_best.low > 1 else "not shown",
        )
        for row in rows
    ]
    blank = [""] * (len(columns) - 3)
    cells += [(model, rival.name, HOW, *blank) for model in models for rival in RIVALS if rival.missing]
    return Table("How long others take, digits, batch 32, Adam, one thread", columns, tuple(cells))


if __name__ == "__main__":
    description = "Keras' fit, Lightning, skorch and Ignite compared with evenbench's fastest execution."
    sys.exit(command(measure_rivals, description, only="", seconds=20.0))
