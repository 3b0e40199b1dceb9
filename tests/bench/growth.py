"""How the time of a step grows with batch, width, depth and length, and a sweep's with its trials.

    python -m tests.bench.growth [--json] [--only width] [--trials 64] [--svg growth.svg]

At each size every execution of each framework is measured by turns, and the framework's fastest counts: Adam,
float32, one thread, synthetic data. A framework is called compute-bound from the size on where the exponent
of the step's time in its floating-point operations, between this size and the next one, is at least 0.5 and
stays there (a ring in the drawing): below, a step's fixed costs outweigh its arithmetic; at 1, time is
proportional to operations. That can be said of batch and width only, where fixed costs stay what they are;
with each layer and each step of a sequence they grow as well.

The sweep is of seeds, 10 epochs of digits each, by the real command with MLflow: imports, start and end of
the workers included.
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
from tests.bench.contest import contest, train_s
from tests.bench.overhead import asked
from tests.bench.report import Report, Table, command, plain, say

BOUND = 0.5  # the exponent from which on arithmetic outweighs the rest
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
    """A size that grows: the architecture, the override that sets it, its values, what else is set.

    `fixed`: the fixed costs of a step don't grow with it.
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
    """All axes, and the sweep (`sweep`); `only` names some. `trials`: the most of a sweep. `svg`: a file for
    the drawing."""
    points: list[Point] = []
    sweeps: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        for axis in [axis for axis in AXES if asked(only, axis.name)]:
            for value in axis.values:
                say(f"{axis.name} {value}")
                points += _points(axis, value, Path(name, axis.name, str(value)), seconds)
        if asked(only, "sweep"):
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
    """The seconds of a sweep of each number of trials; one before them finds files not yet in memory, and
    does not count."""
    warm_trials.command_of(framework, 1, folder / "first")
    return {count: warm_trials.command_of(framework, count, folder / str(count)) for count in counts}


def _points(axis: Axis, value: int, folder: Path, seconds: float) -> list[Point]:
    sides = candidates(axis.model, settings=axis.overrides(value))
    found = contest(sides, folder, seconds, least=5, most=60, learns=False)
    best: dict[str, Point] = {}
    for side, epochs in zip(sides, found.epochs, strict=True):
        if not epochs:
            continue  # its framework refuses it
        step_us = 1e6 * statistics.median(train_s(epochs)) / found.steps
        point = Point(axis.name, value, side.framework, side.execution, step_us, found.flops)
        if side.framework not in best or step_us < best[side.framework].step_us:
            best[side.framework] = point
    return list(best.values())


def exponents(points: Sequence[Point]) -> list[float]:
    """Of the time in the operations, from each point to the next one; points in the order of their size."""
    return [
        math.log(after.step_us / before.step_us) / math.log(after.flops / before.flops)
        for before, after in itertools.pairwise(points)
    ]


def bound_from(points: Sequence[Point]) -> int | None:
    """The size from which on arithmetic decides: None if that is beyond the sizes measured."""
    found = None
    for point, exponent in reversed(list(zip(points, exponents(points), strict=False))):
        if exponent < BOUND:
            break
        found = point.value
    return found


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
        found = [bound_from(each) for each in by.values()]
        bounds = [f"> {axis.values[-2]}" if value is None else str(value) for value in found]
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
