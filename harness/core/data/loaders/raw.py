"""The result of a loader: raw rows, and the task to learn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.core.network import Input
from harness.core.validation import Range

Count = Annotated[int, Range(min=1)]
Seed = Annotated[int, Range(min=0, max=2**32 - 1)]


@dataclass(frozen=True)
class Task:
    """The values to predict: one of `outputs` classes, or `outputs` numbers, with a name each.

    A reconstruction predicts its own input, flattened to `outputs` numbers, which have no names.
    """

    kind: Literal["classification", "regression", "reconstruction"]
    outputs: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """The description of one row of a data set and of its task."""

    name: str
    input: Input
    task: Task


@dataclass(frozen=True, eq=False)
class Raw:
    """Raw rows: x float64 [rows, *sample_shape]; y int64 [rows] or float64 [rows, targets].

    `whole`: the set is too small to split, so train, validation and test are each the whole set. `test_from`:
    if not 0, the rows from this one on are the published test part. `sequence`: samples are [steps,
    features], so a feature has one scale for all steps. `lengths`: int64 [rows], the number of valid steps of
    each row, at least 1; later steps are 0. `vocabulary`: if not 0, samples are [steps] word numbers (1, 2,
    ...; 0 is padding), integers in the float64 x, of which at most this many are distinguished (see
    `harness/core/data/dataset.py`). `words`: the spelling of the words 1, 2, ...; `pattern`: the regular
    expression that matches words in lower-case text.
    """

    x: NDArray[np.float64]
    y: NDArray[Any]
    task: Task
    whole: bool = False
    test_from: int = 0
    sequence: bool = False
    lengths: NDArray[np.int64] | None = None
    vocabulary: int = 0
    words: tuple[str, ...] = ()
    pattern: str = ""


def classes(
    x: Any,
    y: Any,
    names: tuple[str, ...],
    *,
    whole: bool = False,
    test_from: int = 0,
    sequence: bool = False,
    lengths: NDArray[np.int64] | None = None,
    vocabulary: int = 0,
) -> Raw:
    """Return the rows of a classification; `names` are those of the classes 0, 1, ..."""
    task = Task("classification", len(names), names)
    rows, labels = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.int64)
    return Raw(rows, labels, task, whole, test_from, sequence, lengths, vocabulary)


def targets(x: Any, y: Any, names: tuple[str, ...], *, sequence: bool = False) -> Raw:
    """Return the rows of a regression; `names` are those of the targets."""
    task = Task("regression", len(names), names)
    rows = np.asarray(x, dtype=np.float64)
    values = np.asarray(y, dtype=np.float64).reshape(len(rows), len(names))
    return Raw(rows, values, task, sequence=sequence)
