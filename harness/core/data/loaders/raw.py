"""What a loader gives: rows as they come, and what is to be predicted from them."""

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
    """What is to be predicted: one of `outputs` classes, or `outputs` numbers, with a name each.

    A reconstruction gives back its own input, flattened to `outputs` numbers, which have no names.
    """

    kind: Literal["classification", "regression", "reconstruction"]
    outputs: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """What one row of a data set is, and what is to be predicted from it."""

    name: str
    input: Input
    task: Task


@dataclass(frozen=True, eq=False)
class Raw:
    """Rows as they come: x float64 [rows, *sample_shape]; y int64 [rows] or float64 [rows, targets].

    `whole`: too few rows to hold any back, so each of train, validation and test is the whole set.
    `test_from`: where not 0, the rows from this one on are the test part that was published with the set.
    `sequence`: samples are [steps, features], so a feature has one scale for all steps. `lengths` int64
    [rows]: how many steps of a row are valid, at least one; the others, at its end, are 0. `vocabulary`:
    where not 0, samples are [steps] numbers of words (1, 2, ...; 0 is padding), whole numbers in the float64
    x, of which at most so many different ones shall be kept (see `harness/core/data/dataset.py`). `words`:
    how the words 1, 2, ... are spelled; `pattern`: the regular expression that finds them in a text in lower
    case.
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
    """Rows of a classification; `names` are those of the classes 0, 1, ..."""
    task = Task("classification", len(names), names)
    rows, truth = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.int64)
    return Raw(rows, truth, task, whole, test_from, sequence, lengths, vocabulary)


def targets(x: Any, y: Any, names: tuple[str, ...], *, sequence: bool = False) -> Raw:
    """Rows of a regression; `names` are those of the targets."""
    task = Task("regression", len(names), names)
    rows = np.asarray(x, dtype=np.float64)
    truth = np.asarray(y, dtype=np.float64).reshape(len(rows), len(names))
    return Raw(rows, truth, task, sequence=sequence)
