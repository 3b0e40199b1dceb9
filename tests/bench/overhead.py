"""The harness against bare hand-written loops: same framework, same execution, same data, one thread.

    python -m tests.bench.overhead [--json] [--only "torch lstm compiled"] [--rounds 1] [--most 4]

Each architecture in each framework and execution, on digits. Two processes of the same framework take turns,
an epoch each, A B B A. One runs the worker's own code, the other one a loop that imports nothing of the
adapters (tests/bench/bare_*.py) but on JAX their layers and options of XLA, on a network written by hand
(tests/bench/networks_*.py) with as many parameters as the spec has. The ratio is that of paired epochs, with
a bootstrap interval over the pairs; a round is a fresh pair of processes, and the rounds' own ratios show
what the interval can't know: how much processes differ by chance. A row gets more rounds, up to `--most`, as
long as its interval has the goal inside, whichever side the ratio is on (so intervals are a little less sure
than they say). A bare loop against itself (the A/A
rows) shows what is left of the machine's noise. A goal is reached where the ratio is at most that, and missed
where its whole interval lies above. What a framework refuses has no row.

`train` compares what the worker's clock encloses, `epoch` whole epochs (with making the order, reading the
losses and writing the event; without evaluation), so that nothing can hide outside of the clock.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import measure
from harness.measure import Interval
from tests.bench.contest import Contest, Epoch, Side, bare, contest, cpu_s, flat, train_s, whole_s
from tests.bench.report import Report, Table, command, plain, say

GOAL, LIMIT = 1.02, 1.05
MODELS = ("fnn", "cnn", "rnn", "lstm", "transformer")
EXECUTIONS = {
    "torch": ("idiomatic", "eager", "compiled"),
    "keras": ("idiomatic", "compiled", "epoch"),
    "keras_jax": ("idiomatic", "compiled", "epoch"),
    "keras_torch": ("idiomatic", "eager"),
}
NOISE = (("torch", "eager"), ("keras_jax", "epoch"))  # a long epoch and a very short one
PAIRS = (5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class Comparison:
    """One row. Times are medians: of a step in µs, and of what a whole epoch takes beside its steps in µs.

    `cpu` is the ratio of the processor's time, which a busy machine disturbs less than `train`, that of the
    clock. `rounds` are the ratios of the training in each pair of processes alone.
    """

    model: str
    framework: str
    execution: str
    a: str
    b: str
    a_step_us: float
    b_step_us: float
    a_beside_us: float
    b_beside_us: float
    train: Interval
    cpu: Interval
    whole: Interval
    rounds: tuple[float, ...]


def compare(
    sides: tuple[Side, Side], folder: Path, rounds: int, seconds: float, most: int = 0
) -> tuple[Comparison, list[float]] | None:
    """A comparison, and the ratio of each pair; None if the framework refuses a side."""
    found: list[Contest] = []
    while len(found) < rounds or (len(found) < most and _undecided(found)):
        found.append(contest(sides, folder / f"round-{len(found)}", seconds))
        if not all(found[-1].epochs):
            return None
    a, b = (flat([each.epochs[i] for each in found]) for i in (0, 1))
    steps = found[0].steps
    row = Comparison(
        model=sides[0].model,
        framework=sides[0].framework,
        execution=sides[0].execution,
        a=sides[0].script or "harness",
        b=sides[1].script or "harness",
        a_step_us=1e6 * measure.median(train_s(a)) / steps,
        b_step_us=1e6 * measure.median(train_s(b)) / steps,
        a_beside_us=1e6 * _beside(a),
        b_beside_us=1e6 * _beside(b),
        train=measure.ratio(train_s(a), train_s(b)),
        cpu=measure.ratio(cpu_s(a), cpu_s(b)),
        whole=measure.ratio(whole_s(a), whole_s(b)),
        rounds=tuple(measure.ratio(*map(train_s, each.epochs)).estimate for each in found),
    )
    return row, [one / other for one, other in zip(train_s(a), train_s(b), strict=True)]


def _undecided(found: Sequence[Contest]) -> bool:
    """Whether the goal lies within the interval of all rounds."""
    a, b = (train_s(flat([each.epochs[side] for each in found])) for side in (0, 1))
    ratio = measure.ratio(a, b)
    return ratio.low <= GOAL <= ratio.high


def _beside(epochs: Sequence[Epoch]) -> float:
    return measure.median([epoch.whole_s - epoch.train_s for epoch in epochs])


def measure_overhead(only: str = "", rounds: int = 1, most: int = 1, seconds: float = 4.0) -> Report:
    """All comparisons; `only` keeps those with all of its words: framework, architecture, execution."""
    rows, noise = [], []
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        for framework, executions in EXECUTIONS.items():
            for model, execution in itertools.product(MODELS, executions):
                if not asked(only, framework, model, execution):
                    continue
                say(f"{framework} {model} {execution}")
                sides = Side(framework, execution, model=model), bare(framework, execution, model)
                found = compare(sides, Path(name, framework, model, execution), rounds, seconds, most)
                if found:
                    rows.append(found[0])
        for framework, execution in NOISE:
            if asked(only, framework, "fnn", execution):
                say(f"{framework} {execution} against itself")
                sides = bare(framework, execution), bare(framework, execution)
                found = compare(sides, Path(name, "noise", framework, execution), rounds, seconds)
                assert found, "a bare loop refuses nothing"
                noise.append(found)
    values = {
        "goal": GOAL,
        "limit": LIMIT,
        "overhead": [plain(row) for row in rows],
        "noise": [plain(row) | {"narrowing": narrowing(ratios)} for row, ratios in noise],
    }
    tables = [_overhead_table(rows)]
    if noise:
        tables += [_noise_table([row for row, _ in noise]), _narrowing_table(noise)]
    return Report(values, tuple(tables))


def asked(only: str, *words: str) -> bool:
    """Whether all words of `only` are among those of a row; nothing leaves every row."""
    return set(only.split()) <= set(words)


def narrowing(ratios: Sequence[float]) -> dict[int, float]:
    """Half the width of the interval, in percent, by the number of pairs that it is made of."""
    widths = {}
    for pairs in [n for n in PAIRS if n <= len(ratios)] + [len(ratios)]:
        parts = [ratios[i : i + pairs] for i in range(0, len(ratios) - pairs + 1, pairs)][:20]
        found = [measure.ratio(part, [1.0] * pairs) for part in parts]
        widths[pairs] = 100 * measure.median([(each.high - each.low) / 2 for each in found])
    return widths


def reached(ratio: Interval, goal: float) -> str:
    """Whether a ratio is at most the goal: "no" only if its whole interval lies above."""
    if ratio.estimate <= goal:
        return "yes"
    return "no" if ratio.low > goal else "not shown"


def _overhead_table(rows: Sequence[Comparison]) -> Table:
    columns = (
        "model",
        "framework",
        "execution",
        "bare µs/step",
        "harness µs/step",
        "train: ratio [95 %]",
        "rounds",
        "CPU: ratio",
        "epoch: ratio [95 %]",
        "beside the steps, µs/epoch",
        "pairs",
        f"<= {GOAL}",
        f"<= {LIMIT}",
    )
    cells = [
        (
            row.model,
            row.framework,
            row.execution,
            f"{row.b_step_us:.1f}",
            f"{row.a_step_us:.1f}",
            interval(row.train),
            f"{min(row.rounds):.3f} to {max(row.rounds):.3f}",
            f"{row.cpu.estimate:.3f}",
            interval(row.whole),
            f"{row.b_beside_us:.0f} → {row.a_beside_us:.0f}",
            row.train.pairs,
            *(reached(row.train, goal) for goal in (GOAL, LIMIT)),
        )
        for row in rows
    ]
    return Table("Harness against a bare loop, digits, batch 32, Adam, one thread", columns, tuple(cells))


def _noise_table(rows: Sequence[Comparison]) -> Table:
    columns = ("framework", "execution", "µs/step", "ratio [95 %]", "rounds", "CPU: ratio", "pairs")
    cells = [
        (
            row.framework,
            row.execution,
            f"{row.b_step_us:.1f}",
            interval(row.train),
            f"{min(row.rounds):.3f} to {max(row.rounds):.3f}",
            f"{row.cpu.estimate:.3f}",
            row.train.pairs,
        )
        for row in rows
    ]
    return Table("Noise: the bare loop against itself", columns, tuple(cells))


def _narrowing_table(noise: Sequence[tuple[Comparison, list[float]]]) -> Table:
    found = [(row, narrowing(ratios)) for row, ratios in noise]
    columns = ("pairs", *(f"{row.framework} {row.execution}" for row, _ in found))
    counts = sorted({pairs for _, widths in found for pairs in widths})
    cells = [
        (str(n), *(f"± {widths[n]:.1f} %" if n in widths else "" for _, widths in found)) for n in counts
    ]
    return Table("How narrow the interval gets (A/A, median of disjoint samples)", columns, tuple(cells))


def interval(found: Interval) -> str:
    """A ratio with its interval."""
    return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    description = "The harness against bare hand-written loops, and a bare loop against itself."
    sys.exit(command(measure_overhead, description, only="", rounds=1, most=4, seconds=4.0))
