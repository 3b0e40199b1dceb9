"""Overhead of evenbench over hand-written loops: same framework, same execution, same data, one thread.

    python -m tests.bench.overhead [--json] [--only "torch lstm compiled"] [--rounds 3] [--most 8]

Each architecture in each framework and execution, on digits. Two processes of the same framework alternate,
one epoch each, A B B A, on the same core, because two cores of a shared machine are not equally fast. (If
other threads of a side do more than 5 % of its work, both keep all cores, see "cores": otherwise the
scheduler would decide which side wins.) One side runs the worker's code. The other runs a loop
(tests/bench/bare_*.py) that imports nothing of the adapters, except their layers and XLA options on JAX, on a
hand-written network (tests/bench/networks_*.py) with the same number of parameters.

A round is a new pair of processes; its ratio is the median over pairs of epochs. Processes differ more than
their epochs, for example by their memory layout. So a row is the geometric mean of its rounds with Student's
95 % interval over the rounds; an interval over epochs would be narrow and wrong. A row gets more rounds, up
to `--most`, while the goal lies inside its interval (which makes intervals slightly too narrow). A bare loop
compared with itself (the A/A rows, of `--most` rounds) shows the remaining noise of the machine. A goal is
reached if the ratio is at most the goal, and missed if the whole interval lies above it. Executions that a
framework refuses have no row.

`train` compares the time inside the worker's clock. `epoch` compares whole epochs, with creating the order,
reading the losses and writing the event, but without evaluation, so that no cost can hide outside of the
clock.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from harness.core.machine import statistics
from harness.core.machine.statistics import Interval
from tests.bench.comparison import (
    Epoch,
    Side,
    TurnResults,
    bare,
    cpu_s,
    flat,
    measure_in_turns,
    train_s,
    whole_s,
)
from tests.bench.report import Report, Table, command, plain, say

GOAL, LIMIT = 1.02, 1.05
MODELS = ("fnn", "cnn", "rnn", "lstm", "transformer")
EXECUTIONS = {
    "torch": ("idiomatic", "eager", "compiled"),
    "keras": ("idiomatic", "compiled", "epoch"),
    "keras_jax": ("idiomatic", "compiled", "epoch"),
    "keras_torch": ("idiomatic", "eager"),
}
NOISE = (("torch", "eager"), ("keras_jax", "epoch"))  # a long and a very short epoch
PAIRS = (5, 10, 20, 50, 100, 200, 500)
PAIRED = "pairs of processes, epochs"
FEWEST, MOST = 3, 8  # rounds of a row; an interval over two would be a guess


@dataclass(frozen=True)
class Comparison:
    """One row. Times are medians in µs: of a step, and of an epoch's time outside of its steps
    (`..._outside_us`).

    `cpu` is the ratio of processor times, which a busy machine disturbs less than `train`, the ratio of
    wall-clock times. `rounds` are the training ratios of each pair of processes, `epochs` is the total number
    of pairs of epochs. `one_core`: both sides shared a core.
    """

    model: str
    framework: str
    execution: str
    a: str
    b: str
    a_step_us: float
    b_step_us: float
    a_outside_us: float
    b_outside_us: float
    train: Interval
    cpu: Interval
    whole: Interval
    rounds: tuple[float, ...]
    epochs: int
    one_core: bool


def compare(
    sides: tuple[Side, Side], folder: Path, rounds: int, seconds: float, most: int = 0
) -> tuple[Comparison, list[list[float]]] | None:
    """A comparison, and the ratios of pairs of epochs by round; None if the framework refuses a side."""
    results: list[TurnResults] = []
    while len(results) < max(FEWEST, rounds) or (len(results) < most and _undecided(results)):
        one_core = results[0].one_core if results else None
        round_of = folder / f"round-{len(results)}"
        results.append(measure_in_turns(sides, round_of, seconds, least=8, one_core=one_core))
        if not all(results[-1].epochs):
            return None
    a, b = (flat([each.epochs[i] for each in results]) for i in (0, 1))
    steps, ratios = results[0].steps, _ratios(results, train_s)
    row = Comparison(
        model=sides[0].model,
        framework=sides[0].framework,
        execution=sides[0].execution,
        a=sides[0].script or "harness",
        b=sides[1].script or "harness",
        a_step_us=1e6 * statistics.median(train_s(a)) / steps,
        b_step_us=1e6 * statistics.median(train_s(b)) / steps,
        a_outside_us=1e6 * _outside_steps(a),
        b_outside_us=1e6 * _outside_steps(b),
        train=over_rounds(ratios),
        cpu=over_rounds(_ratios(results, cpu_s)),
        whole=over_rounds(_ratios(results, whole_s)),
        rounds=tuple(ratios),
        epochs=len(a),
        one_core=results[0].one_core,
    )
    return row, _pairs(results, train_s)


def _undecided(results: Sequence[TurnResults]) -> bool:
    """Whether the goal lies within the interval over all rounds."""
    ratio = over_rounds(_ratios(results, train_s))
    return ratio.low <= GOAL <= ratio.high


def _ratios(results: Sequence[TurnResults], of: Callable[[Sequence[Epoch]], list[float]]) -> list[float]:
    """The ratio of each round: the median over its pairs of epochs."""
    return [statistics.median(pairs) for pairs in _pairs(results, of)]


def _pairs(results: Sequence[TurnResults], of: Callable[[Sequence[Epoch]], list[float]]) -> list[list[float]]:
    """The ratio of each pair of epochs, by round."""
    return [[one / other for one, other in zip(*map(of, each.epochs), strict=True)] for each in results]


def over_rounds(ratios: Sequence[float]) -> Interval:
    """The geometric mean of the rounds' ratios with a 95 % interval by Student's t on their logarithms."""
    logs = np.log(ratios)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    low, middle, high = np.exp(logs.mean() + np.array([-half, 0.0, half])).tolist()
    return Interval(middle, low, high, len(logs))


def _outside_steps(epochs: Sequence[Epoch]) -> float:
    return statistics.median([epoch.whole_s - epoch.train_s for epoch in epochs])


def measure_overhead(only: str = "", rounds: int = FEWEST, most: int = MOST, seconds: float = 2.0) -> Report:
    """Measure all comparisons; `only` selects those with all its words: framework, architecture,
    execution."""
    rows, noise = [], []
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        for framework, executions in EXECUTIONS.items():
            for model, execution in itertools.product(MODELS, executions):
                if not selected(only, framework, model, execution):
                    continue
                say(f"{framework} {model} {execution}")
                sides = Side(framework, execution, model=model), bare(framework, execution, model)
                comparison = compare(sides, Path(name, framework, model, execution), rounds, seconds, most)
                if comparison:
                    rows.append(comparison[0])
        for framework, execution in NOISE:
            if selected(only, framework, "fnn", execution):
                say(f"{framework} {execution} against itself")
                sides = bare(framework, execution), bare(framework, execution)
                comparison = compare(sides, Path(name, "noise", framework, execution), most, seconds)
                assert comparison, "a bare loop refuses nothing"
                row, ratios = comparison
                widths = {
                    "narrowing": narrowing(max(ratios, key=len)),
                    "narrowing_over_rounds": narrowing_over_rounds(row.rounds),
                }
                noise.append((row, widths))
    values = {
        "goal": GOAL,
        "limit": LIMIT,
        "overhead": [plain(row) for row in rows],
        "noise": [plain(row) | widths for row, widths in noise],
    }
    tables = [_overhead_table(rows)]
    if noise:
        tables += [_noise_table([row for row, _ in noise]), *_narrowing_tables(noise)]
    return Report(values, tuple(tables))


def selected(only: str, *words: str) -> bool:
    """Whether all words of `only` are among those of a row; an empty `only` selects every row."""
    return set(only.split()) <= set(words)


def narrowing(ratios: Sequence[float]) -> dict[int, float]:
    """Half the width in percent of an interval over pairs of epochs of one round, by the number of pairs."""
    widths = {}
    for pairs in [n for n in PAIRS if n <= len(ratios)]:
        parts = [ratios[i : i + pairs] for i in range(0, len(ratios) - pairs + 1, pairs)][:20]
        intervals = [statistics.ratio(part, [1.0] * pairs) for part in parts]
        widths[pairs] = 100 * statistics.median([(each.high - each.low) / 2 for each in intervals])
    return widths


def narrowing_over_rounds(ratios: Sequence[float], most: int = 32) -> dict[int, float]:
    """Half the width in percent of Student's interval over rounds with this scatter, by the number of
    rounds."""
    deviation = np.log(ratios).std(ddof=1)
    counts = itertools.takewhile(lambda n: n <= most, (FEWEST * 2**i for i in range(most)))
    return {n: 100 * float(stats.t.ppf(0.975, n - 1) * deviation / np.sqrt(n)) for n in counts}


def reached(ratio: Interval, goal: float) -> str:
    """Whether a ratio is at most the goal; "no" only if its whole interval lies above."""
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
        "outside the steps, µs/epoch",
        PAIRED,
        "cores",
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
            f"{row.b_outside_us:.0f} → {row.a_outside_us:.0f}",
            f"{row.train.pairs}, {row.epochs}",
            "one" if row.one_core else "all",
            *(reached(row.train, goal) for goal in (GOAL, LIMIT)),
        )
        for row in rows
    ]
    return Table("Harness against a bare loop, digits, batch 32, Adam, one thread", columns, tuple(cells))


def _noise_table(rows: Sequence[Comparison]) -> Table:
    columns = ("framework", "execution", "µs/step", "ratio [95 %]", "rounds", "CPU: ratio", PAIRED)
    cells = [
        (
            row.framework,
            row.execution,
            f"{row.b_step_us:.1f}",
            interval(row.train),
            f"{min(row.rounds):.3f} to {max(row.rounds):.3f}",
            f"{row.cpu.estimate:.3f}",
            f"{row.train.pairs}, {row.epochs}",
        )
        for row in rows
    ]
    return Table("Noise: the bare loop against itself", columns, tuple(cells))


def _narrowing_tables(
    noise: Sequence[tuple[Comparison, Mapping[str, Mapping[int, float]]]],
) -> tuple[Table, Table]:
    names = [f"{row.framework} {row.execution}" for row, _ in noise]
    titles = {
        "narrowing_over_rounds": (
            "How narrow the interval gets (A/A): pairs of processes",
            "pairs of processes",
        ),
        "narrowing": (
            "The same for epochs of one pair of processes (disjoint samples)",
            "pairs of epochs",
        ),
    }
    of_rounds, of_epochs = (
        _widths(*title, names, [widths[key] for _, widths in noise]) for key, title in titles.items()
    )
    return of_rounds, of_epochs


def _widths(title: str, counted: str, names: Sequence[str], widths: Sequence[Mapping[int, float]]) -> Table:
    counts = sorted({count for each in widths for count in each})
    cells = [(str(n), *(f"± {each[n]:.1f} %" if n in each else "" for each in widths)) for n in counts]
    return Table(title, (counted, *names), tuple(cells))


def interval(ratio: Interval) -> str:
    """A ratio with its interval."""
    return f"{ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


if __name__ == "__main__":
    description = "Overhead of evenbench over hand-written loops, and a bare loop compared with itself."
    sys.exit(command(measure_overhead, description, only="", rounds=FEWEST, most=MOST, seconds=2.0))
