"""The summary at the top of docs/results/benchmarks.md: one line for each section, computed from its
tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from statistics import median

from tests.bench.pages.layout import PageTable, tables


def summary(sections: dict[str, str], names: dict[str, str]) -> str:
    """The summary of sections by title; `names` maps each title to the name of its benchmark."""
    lines = ["| section | result |", "|---|---|"]
    for title, section in sections.items():
        lines.append(f"| [{title}](#{_anchor(title)}) | {_RESULTS[names[title]](tables(section))} |")
    return "\n".join(lines) + "\n"


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")


def _overhead(page_tables: list[PageTable]) -> str:
    table, noise = page_tables[:2]
    ratios = table.numbers("train: ratio")
    goals = (
        f"goal {goal} reached in {table.column(goal).count('yes')} of {len(ratios)} rows"
        for goal in ("<= 1.02", "<= 1.05")
    )
    return (
        f"Training time over that of a bare loop: median {median(ratios):.3f}, {min(ratios):.3f} to "
        f"{max(ratios):.3f}; {', '.join(goals)}. The bare loop against itself: "
        f"{', '.join(f'{ratio:.3f}' for ratio in noise.numbers('ratio'))}"
    )


def _rivals(page_tables: list[PageTable]) -> str:
    (table,) = page_tables
    torch, best = table.numbers("times torch's best"), table.numbers("times the best")
    return (
        "An epoch of Keras `fit`, Lightning, skorch or Ignite takes "
        f"{min(best):.1f} to {max(best):.1f} times as long as one of evenbench's fastest framework, and "
        f"{min(torch):.2f} to {max(torch):.1f} times as long as one of its PyTorch; "
        f"evenbench is faster in {table.column('ahead').count('yes')} of {len(best)} comparisons"
    )


def _shares(page_tables: list[PageTable]) -> str:
    (table,) = page_tables
    best: dict[str, str] = {}
    for model, share in zip(table.column("model"), table.column("share"), strict=True):
        best[model] = max(best.get(model, ""), share, key=lambda text: float(text.split()[0] if text else 0))
    return "Of the matrix limit, in the fastest framework: " + ", ".join(f"{m} {s}" for m, s in best.items())


def _fnn_speed(page_tables: list[PageTable]) -> str:
    (table,) = page_tables
    factor = max(zip(table.numbers("times as fast"), table.column(""), strict=True))
    return f"{factor[1]} is the fastest: {factor[0]:.1f} times as fast as Keras `fit` on TensorFlow"


def _warm_trials(page_tables: list[PageTable]) -> str:
    table = page_tables[0]
    costs = zip(
        table.column("framework"),
        table.column("a further trial"),
        table.column("naive: a further trial"),
        strict=True,
    )
    return "Seconds for one more trial, in brackets the script without evenbench: " + ", ".join(
        f"{framework} {ours} ({naive})" for framework, ours, naive in costs
    )


def _sweep_64(page_tables: list[PageTable]) -> str:
    table = page_tables[0]
    factors = [
        f"`{way.removeprefix('evenbench ')}` {factor}"
        for way, factor in zip(table.column(""), table.column("times as fast"), strict=True)
        if factor != "-"
    ]
    return f"Times as fast as Hydra with Lightning and MLflow: {', '.join(factors)}"


def _two_workers(page_tables: list[PageTable]) -> str:
    (table,) = page_tables
    factors = dict(zip(table.column("workers"), table.column("times as fast"), strict=True))
    return ", ".join(
        f"{workers} workers: {factor} times as fast" for workers, factor in factors.items() if workers != "1"
    )


def _kills(page_tables: list[PageTable]) -> str:
    (table,) = page_tables
    wrong = table.column("wrong")
    return f"{len(wrong)} kills, {len(wrong) - wrong.count('-')} of them with errors afterwards"


def _quiet(page_tables: list[PageTable]) -> str:
    (table,) = page_tables
    ratios = zip(table.column("framework"), table.column("ratio"), strict=True)
    return "Step time with logging over that without: " + ", ".join(
        f"{name} {ratio}" for name, ratio in ratios
    )


def _growth(page_tables: list[PageTable]) -> str:
    table = page_tables[-1]
    last = zip(table.column("framework"), table.column("the last ones"), strict=True)
    return "Seconds per trial at the end of the longest sweep: " + ", ".join(
        f"{name} {s}" for name, s in last
    )


_RESULTS: dict[str, Callable[[list[PageTable]], str]] = {
    "overhead": _overhead,
    "rivals": _rivals,
    "shares": _shares,
    "fnn_speed": _fnn_speed,
    "warm_trials": _warm_trials,
    "sweep_64": _sweep_64,
    "two_workers": _two_workers,
    "kills": _kills,
    "quiet": _quiet,
    "growth": _growth,
}
