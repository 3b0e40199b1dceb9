"""Growth of a step's time with batch, width, depth and length, and of a sweep's time with its trials.

    python -m tests.bench.growth [--json] [--only width] [--trials 64] [--svg growth.svg]

At each size every execution of each framework is measured in turns, and the framework's fastest counts: Adam,
float32, one thread, synthetic data. A framework is compute-bound from the first size at which the exponent of
the step's time in its floating-point operations, from this size to the next, is at least 0.5 and stays so (a
ring in the drawing). Below, fixed costs of a step outweigh its arithmetic; at 1, time is proportional to
operations. This holds for batch and width only, where fixed costs are constant; they grow with each layer and
each step of a sequence.

The sweep runs over seeds, 10 epochs of digits each, with the real command and MLflow, including imports,
start and end of the workers.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.machine import statistics
from tests.bench import warm_trials
from tests.bench.best import candidates
from tests.bench.chart import Panel, Series, chart
from tests.bench.comparison import measure_in_turns, train_s
from tests.bench.overhead import selected
from tests.bench.report import Report, Table, command, plain, say

BOUND = 0.5  # exponent from which on arithmetic outweighs fixed costs
CLUSTERS = (
    "data=make_classification",
    "data.options.n_samples=12000",
    "data.options.n_features=64",
    "data.options.n_informative=16",
    "data.options.n_classes=10",
)
SUMS = ("data=adding_problem", "data.options.rows=2400")
TRIALS = (1, 8, 64, 512)


@dataclass(frozen=True)
class Axis:
    """A size that grows: the architecture, the override that sets it, its values, other settings.

    `fixed`: the fixed costs of a step do not grow with it.
    """

    name: str
    model: str
    key: str
    values: tuple[int, ...]
    settings: tuple[str, ...]
    fixed: bool

    def overrides(self, value: int) -> tuple[str, ...]:
        """The settings of one point."""
        return *self.settings, f"{self.key}={value}"


AXES = (
    Axis("batch", "fnn", "train.batch_size", (8, 32, 128, 512, 2048), CLUSTERS, True),
    Axis("width", "fnn", "model.units", (16, 64, 256, 1024), (*CLUSTERS, "model.depth=2"), True),
    Axis("depth", "fnn", "model.depth", (1, 2, 4, 8, 16), (*CLUSTERS, "model.units=64"), False),
    Axis("length", "lstm", "data.options.steps", (8, 16, 32, 64, 128), SUMS, False),
)


@dataclass(frozen=True)
class Point:
    """A framework's fastest execution at one size: the median of a step in µs."""

    axis: str
    value: int
    framework: str
    execution: str
    step_us: float
    flops: int


def measure_growth(only: str = "", trials: int = 64, seconds: float = 2.0, svg: str = "") -> Report:
    """Measure all axes and the sweep (`sweep`); `only` selects some. `trials`: the largest sweep. `svg`: a
    file for the drawing."""
    points: list[Point] = []
    sweeps: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        for axis in [axis for axis in AXES if selected(only, axis.name)]:
            for value in axis.values:
                say(f"{axis.name} {value}")
                points += _points(axis, value, Path(name, axis.name, str(value)), seconds)
        if selected(only, "sweep"):
            counts = [count for count in TRIALS if count <= trials]
            for framework in warm_trials.FRAMEWORKS:
                say(f"sweep of {framework}, {', '.join(map(str, counts))} trials")
                sweeps[framework] = _sweeps(framework, counts, Path(name, "sweep", framework))
    axes = [axis for axis in AXES if any(point.axis == axis.name for point in points)]
    if svg:
        panels = [_panel(axis, points) for axis in axes] + ([_sweep_panel(sweeps)] if sweeps else [])
        Path(svg).write_text(chart(panels), encoding="utf-8")
    values = {"bound": BOUND, "points": [plain(point) for point in points], "sweeps": sweeps}
    tables = [_table(axis, points) for axis in axes] + ([_sweep_table(sweeps)] if sweeps else [])
    return Report(values, tuple(tables))


def _sweeps(framework: str, counts: Sequence[int], folder: Path) -> dict[int, float]:
    """Seconds of a sweep by its number of trials, after a warm-up sweep that loads files into memory."""
    warm_trials.command_of(framework, 1, folder / "first")
    return {count: warm_trials.command_of(framework, count, folder / str(count)) for count in counts}


def _points(axis: Axis, value: int, folder: Path, seconds: float) -> list[Point]:
    sides = candidates(axis.model, settings=axis.overrides(value))
    result = measure_in_turns(sides, folder, seconds, least=5, most=60, learns=False)
    best: dict[str, Point] = {}
    for side, epochs in zip(sides, result.epochs, strict=True):
        if not epochs:
            continue  # the framework refuses it
        step_us = 1e6 * statistics.median(train_s(epochs)) / result.steps
        point = Point(axis.name, value, side.framework, side.execution, step_us, result.flops)
        if side.framework not in best or step_us < best[side.framework].step_us:
            best[side.framework] = point
    return list(best.values())


def exponents(points: Sequence[Point]) -> list[float]:
    """Exponents of the time in the operations, from each point to the next; points are ordered by size."""
    return [
        math.log(after.step_us / before.step_us) / math.log(after.flops / before.flops)
        for before, after in itertools.pairwise(points)
    ]


def bound_from(points: Sequence[Point]) -> int | None:
    """The size from which on a framework is compute-bound; None if beyond the measured sizes."""
    result = None
    for point, exponent in reversed(list(zip(points, exponents(points), strict=False))):
        if exponent < BOUND:
            break
        result = point.value
    return result


def _of(axis: Axis, points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of an axis by framework, in the order of size."""
    by: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.value):
        if point.axis == axis.name:
            by.setdefault(point.framework, []).append(point)
    return by


def _table(axis: Axis, points: Sequence[Point]) -> Table:
    by = _of(axis, points)
    columns = (axis.name, "MFLOP/step", *(f"{framework}, µs/step" for framework in by))
    cells = []
    for value in axis.values:
        here = {framework: p for framework, each in by.items() for p in each if p.value == value}
        shown = [f"{here[f].step_us:.1f} {here[f].execution}" if f in here else "refused" for f in by]
        flops = next(iter(here.values())).flops
        cells.append((str(value), f"{flops / 1e6:.3g}", *shown))
    if axis.fixed:
        result = [bound_from(each) for each in by.values()]
        bounds = [f"> {axis.values[-2]}" if value is None else str(value) for value in result]
        cells.append(("compute-bound from", "", *bounds))
    return Table(f"Step time against {axis.name} ({axis.model}, {axis.key})", columns, tuple(cells))


def _sweep_table(sweeps: Mapping[str, Mapping[int, float]]) -> Table:
    counts = list(next(iter(sweeps.values())))
    columns = ("framework", *(f"{n} trials, s" for n in counts), "the last ones, s/trial")
    cells = []
    for framework, taken in sweeps.items():
        most, before = counts[-1], counts[-2] if len(counts) > 1 else 0
        further = (taken[most] - taken.get(before, 0.0)) / (most - before)
        cells.append((framework, *(f"{taken[n]:.1f}" for n in counts), f"{further:.3f}"))
    return Table("Time of a sweep against its trials", columns, tuple(cells))


def _panel(axis: Axis, points: Sequence[Point]) -> Panel:
    series = []
    for framework, each in _of(axis, points).items():
        bound = bound_from(each) if axis.fixed else None
        at = tuple((float(point.value), point.step_us) for point in each)
        series.append(Series(framework, at, None if bound is None else float(bound)))
    return Panel(f"{axis.model}: {axis.name}", "µs/step", tuple(series))


def _sweep_panel(sweeps: Mapping[str, Mapping[int, float]]) -> Panel:
    series = [
        Series(framework, tuple((float(n), s) for n, s in taken.items()))
        for framework, taken in sweeps.items()
    ]
    return Panel("sweep: trials", "s", tuple(series))


if __name__ == "__main__":
    description = "The time of a step against batch, width, depth and length; a sweep's against its trials."
    sys.exit(command(measure_growth, description, only="", trials=64, seconds=2.0, svg=""))
