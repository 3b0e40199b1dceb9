"""The harness against bare hand-written loops: same framework, same execution, same data, one thread.

    python -m tests.bench.overhead [--json] [--only "torch lstm compiled"] [--rounds 3] [--most 8]

Each architecture in each framework and execution, on digits. Two processes of the same framework take turns,
an epoch each, A B B A, on the same core: two cores of a shared machine are not equally fast, and which side
gets which is decided for a whole round. (Where other threads of a side do more than a twentieth of its work,
both keep all cores, see "cores": how two threads share one is the scheduler's choice and not a side's merit.)
One runs the worker's own code, the other one a loop that imports nothing of the adapters
(tests/bench/bare_*.py) but on JAX their layers and options of XLA, on a network written by hand
(tests/bench/networks_*.py) with as many parameters as the spec has. A round is a fresh pair of processes, and
its ratio is the median over pairs of epochs. Processes differ by more than their epochs do (where their
memory lies, for one), so a row is the geometric mean of its rounds with Student's 95 % interval over these:
an interval over epochs would be narrow, and wrong. A row gets more rounds, up to `--most`, as long as its
interval has the goal inside, whichever side the ratio is on (so intervals are a little less sure than they
say). A bare loop against itself (the A/A rows, of `--most` rounds) shows what is left of the machine's noise.
A goal is reached where the ratio is at most that, and missed where its whole interval lies above. What a
framework refuses has no row.

`train` compares what the worker's clock encloses, `epoch` whole epochs (with making the order, reading the
losses and writing the event; without evaluation), so that nothing can hide outside of the clock.
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
PAIRED = "pairs of processes, epochs"
FEWEST, MOST = 3, 8  # rounds that a row has; of two, an interval is a guess


@dataclass(frozen=True)
class Comparison:
    """One row. Times are medians: of a step in µs, and of what a whole epoch takes beside its steps in µs.

    `cpu` is the ratio of the processor's time, which a busy machine disturbs less than `train`, that of the
    clock. `rounds` are the ratios of the training in each pair of processes alone; `epochs` are the pairs of
    epochs in all of them. `one_core`: both sides shared one.
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
    epochs: int
    one_core: bool


def compare(
    sides: tuple[Side, Side], folder: Path, rounds: int, seconds: float, most: int = 0
) -> tuple[Comparison, list[list[float]]] | None:
    """A comparison, and the ratio of each pair of epochs by rounds; None if the framework refuses a side."""
    found: list[Contest] = []
    while len(found) < max(FEWEST, rounds) or (len(found) < most and _undecided(found)):
        one_core = found[0].one_core if found else None
        round_of = folder / f"round-{len(found)}"
        found.append(contest(sides, round_of, seconds, least=8, one_core=one_core))
        if not all(found[-1].epochs):
            return None
    a, b = (flat([each.epochs[i] for each in found]) for i in (0, 1))
    steps, ratios = found[0].steps, _ratios(found, train_s)
    row = Comparison(
        model=sides[0].model,
        framework=sides[0].framework,
        execution=sides[0].execution,
        a=sides[0].script or "harness",
        b=sides[1].script or "harness",
        a_step_us=1e6 * statistics.median(train_s(a)) / steps,
        b_step_us=1e6 * statistics.median(train_s(b)) / steps,
        a_beside_us=1e6 * _beside(a),
        b_beside_us=1e6 * _beside(b),
        train=over_rounds(ratios),
        cpu=over_rounds(_ratios(found, cpu_s)),
        whole=over_rounds(_ratios(found, whole_s)),
        rounds=tuple(ratios),
        epochs=len(a),
        one_core=found[0].one_core,
    )
    return row, _pairs(found, train_s)


def _undecided(found: Sequence[Contest]) -> bool:
    """Whether the goal lies within the interval of all rounds."""
    ratio = over_rounds(_ratios(found, train_s))
    return ratio.low <= GOAL <= ratio.high


def _ratios(found: Sequence[Contest], of: Callable[[Sequence[Epoch]], list[float]]) -> list[float]:
    """The ratio of each round: the median over its pairs of epochs."""
    return [statistics.median(pairs) for pairs in _pairs(found, of)]


def _pairs(found: Sequence[Contest], of: Callable[[Sequence[Epoch]], list[float]]) -> list[list[float]]:
    """The ratio of each pair of epochs, by rounds."""
    return [[one / other for one, other in zip(*map(of, each.epochs), strict=True)] for each in found]


def over_rounds(ratios: Sequence[float]) -> Interval:
    """The geometric mean of the rounds' ratios, with its 95 % interval by Student's t of their logarithms."""
    logs = np.log(ratios)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    low, middle, high = np.exp(logs.mean() + np.array([-half, 0.0, half])).tolist()
    return Interval(middle, low, high, len(logs))


def _beside(epochs: Sequence[Epoch]) -> float:
    return statistics.median([epoch.whole_s - epoch.train_s for epoch in epochs])


def measure_overhead(only: str = "", rounds: int = FEWEST, most: int = MOST, seconds: float = 2.0) -> Report:
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
                found = compare(sides, Path(name, "noise", framework, execution), most, seconds)
                assert found, "a bare loop refuses nothing"
                row, ratios = found
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


def asked(only: str, *words: str) -> bool:
    """Whether all words of `only` are among those of a row; nothing leaves every row."""
    return set(only.split()) <= set(words)


def narrowing(ratios: Sequence[float]) -> dict[int, float]:
    """Half the width of the interval over pairs of epochs, in percent, by their number; in one round."""
    widths = {}
    for pairs in [n for n in PAIRS if n <= len(ratios)]:
        parts = [ratios[i : i + pairs] for i in range(0, len(ratios) - pairs + 1, pairs)][:20]
        found = [statistics.ratio(part, [1.0] * pairs) for part in parts]
        widths[pairs] = 100 * statistics.median([(each.high - each.low) / 2 for each in found])
    return widths


def narrowing_over_rounds(ratios: Sequence[float], most: int = 32) -> dict[int, float]:
    """The same over rounds: what Student's interval has to be for so many that scatter as these do."""
    deviation = np.log(ratios).std(ddof=1)
    counts = itertools.takewhile(lambda n: n <= most, (FEWEST * 2**i for i in range(most)))
    return {n: 100 * float(stats.t.ppf(0.975, n - 1) * deviation / np.sqrt(n)) for n in counts}


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
            f"{row.b_beside_us:.0f} → {row.a_beside_us:.0f}",
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


def interval(found: Interval) -> str:
    """A ratio with its interval."""
    return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    description = "The harness against bare hand-written loops, and a bare loop against itself."
    sys.exit(command(measure_overhead, description, only="", rounds=FEWEST, most=MOST, seconds=2.0))
