"""Split a data set into training, validation and test rows.

The splits use `harness/core/rng.py` rather than scikit-learn, so that they never change with its version.
They are stratified: classes are as frequent in each part as in the whole set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.core import rng
from harness.core.data.loaders import Raw, Task
from harness.core.validation import ConfigError, Mistake

SPLITS = ("train", "val", "test")


def split_rows(
    raw: Raw, test_fraction: float, val_fraction: float, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Return row numbers by split, each in shuffled order.

    A test part that was published with the set stays as it is, and the fractions refer to the other rows.
    Raises ConfigError if a part has no row, or a class no training row.
    """
    if raw.whole:
        return dict.fromkeys(SPLITS, np.arange(len(raw.x)))
    rows = raw.test_from or len(raw.x)
    strata = raw.task.outputs if raw.task.kind == "classification" else 1
    stratum = raw.y[:rows] if raw.task.kind == "classification" else np.zeros(rows, dtype=np.int64)
    counts = np.bincount(stratum, minlength=strata)
    fractions = {"test": 0.0 if raw.test_from else test_fraction, "val": val_fraction}
    held_out = {split: _apportion(counts, round(part * rows)) for split, part in fractions.items()}
    order = rng.permutation(rows, "split", seed)
    part = np.full(rows, "train", dtype="<U5")
    for number in range(strata):
        members = order[stratum[order] == number]
        test, val = int(held_out["test"][number]), int(held_out["val"][number])
        part[members[:test]] = "test"
        part[members[test : test + val]] = "val"
    parts = {split: order[part[order] == split] for split in SPLITS}
    if raw.test_from:
        parts["test"] = np.arange(raw.test_from, len(raw.x))
    _refuse_empty(parts, stratum, raw.task, fractions)
    return parts


def _refuse_empty(
    parts: dict[str, NDArray[np.int64]],
    stratum: NDArray[np.int64],
    task: Task,
    fractions: dict[str, float],
) -> None:
    rows = len(stratum)
    mistakes = [
        Mistake(
            f"data.{split}_fraction",
            f"{fraction:g} of {rows} rows is less than one row",
            f">= {1 / rows:.2g}",
        )
        for split, fraction in fractions.items()
        if not len(parts[split])
    ]
    missing = sorted(set(range(task.outputs)) - set(stratum[parts["train"]].tolist()))
    if task.kind == "classification" and missing:
        classes = ", ".join(task.names[number] for number in missing)
        mistakes.append(
            Mistake("data", f"no training row is left for the class {classes}", "smaller fractions")
        )
    if mistakes:
        raise ConfigError(mistakes)


def _apportion(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Distribute `total` over strata in proportion to `counts` by largest remainders (Hamilton's method)."""
    shares, remainders = np.divmod(counts * total, counts.sum())
    extra = np.argsort(-remainders, kind="stable")[: total - int(shares.sum())]
    shares[extra] += 1
    return shares
