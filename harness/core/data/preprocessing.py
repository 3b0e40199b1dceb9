"""What is fitted to the training rows and applied to all: scales of numbers, vocabularies of words.

Sums are taken in a fixed order, so that the same rows give the same bits on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNKNOWN = 1  # the id of a word that is not in the vocabulary; 0 is padding


def standardise(
    x: dict[str, NDArray[np.float64]], sequence: bool, lengths: dict[str, NDArray[np.int64]] | None
) -> dict[str, NDArray[np.float64]]:
    """x with mean 0 and deviation 1 over the training rows, for every place of a sample.

    For sequences it is for every feature, over all valid steps; the padding stays 0.
    """
    mean, std = scale(fitting_rows(x["train"], sequence, None if lengths is None else lengths["train"]))
    scaled = {split: (values - mean) / std for split, values in x.items()}
    if lengths is None:
        return scaled
    return {
        split: np.where(_valid(values, lengths[split])[:, :, None], values, 0.0)
        for split, values in scaled.items()
    }


def fitting_rows(
    x: NDArray[np.float64], sequence: bool, lengths: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """What the scale of rows is fitted to: for sequences all valid steps, one below the other."""
    if lengths is not None:
        return x[_valid(x, lengths)]
    return x.reshape(-1, x.shape[-1]) if sequence else x


def _valid(x: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which steps are no padding: bool [rows, steps]."""
    steps: NDArray[np.bool_] = np.arange(x.shape[1]) < lengths[:, None]
    return steps


def most_frequent(
    x: dict[str, NDArray[np.float64]], limit: int
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Number words anew by their frequency in the training part, from 2 on; those that are left out get 1.

    The vocabulary is learnt from the training part, so that a word that only the test part has is as unknown
    as it would be in use. Returned with the number of ids, at most `limit`, those of padding and of the
    unknown word included. Equally frequent words keep the order of the source.
    """
    largest = max(int(values.max()) for values in x.values())
    ids = word_ids(x["train"], largest, limit)
    # without a word that is known there still are the ids of padding and of the unknown one
    vocabulary = max(int(ids.max()), UNKNOWN) + 1
    return {split: ids[values.astype(np.int64)] for split, values in x.items()}, vocabulary


def word_ids(train: NDArray[np.float64], largest: int, limit: int) -> NDArray[np.float64]:
    """The id that `most_frequent` gives to each number of a word, 0 to `largest`: float64 [largest + 1]."""
    counts = np.bincount(train.astype(np.int64).ravel(), minlength=largest + 1)
    counts[0] = 0
    words = np.argsort(-counts, kind="stable")
    words = words[counts[words] > 0][: limit - UNKNOWN - 1]
    ids = np.full(largest + 1, float(UNKNOWN))
    ids[0] = 0.0
    ids[words] = np.arange(len(words)) + UNKNOWN + 1
    return ids


def scale(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of every column; a constant column gets the deviation 1.

    Running sums have one possible order of additions; `np.mean` has one per processor type.
    """
    rows = len(values)
    mean = np.cumsum(values, axis=0)[-1] / rows
    variance = np.cumsum((values - mean) ** 2, axis=0)[-1] / rows
    constant = values.max(axis=0) == values.min(axis=0)
    return mean, np.where(constant, 1.0, np.sqrt(variance))
