"""Preprocessing fitted to the training rows and applied to all: standardisation, vocabularies.

Sums use a fixed order of additions, so that the same rows give the same bits on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNKNOWN = 1  # the id of words outside the vocabulary; 0 is padding


def standardise(
    x: dict[str, NDArray[np.float64]], sequence: bool, lengths: dict[str, NDArray[np.int64]] | None
) -> dict[str, NDArray[np.float64]]:
    """Scale x to mean 0 and standard deviation 1 over the training rows, for each element of a sample.

    For sequences, each feature is scaled over all valid steps; padding stays 0.
    """
    mean, std = mean_and_std(rows_to_fit(x["train"], sequence, None if lengths is None else lengths["train"]))
    scaled = {split: (values - mean) / std for split, values in x.items()}
    if lengths is None:
        return scaled
    return {
        split: np.where(_valid_steps(values, lengths[split])[:, :, None], values, 0.0)
        for split, values in scaled.items()
    }


def rows_to_fit(
    x: NDArray[np.float64], sequence: bool, lengths: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """Return the rows that a scale is fitted to; for sequences, all valid steps as [steps, features]."""
    if lengths is not None:
        return x[_valid_steps(x, lengths)]
    return x.reshape(-1, x.shape[-1]) if sequence else x


def _valid_steps(x: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which steps are not padding: bool [rows, steps]."""
    steps: NDArray[np.bool_] = np.arange(x.shape[1]) < lengths[:, None]
    return steps


def limit_vocabulary(
    x: dict[str, NDArray[np.float64]], limit: int
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Renumber words by their frequency in the training part, starting from 2; all others become UNKNOWN.

    The vocabulary comes from the training part only, so words that occur only in the test part are unknown,
    as they would be in use. Returns x and the number of ids, at most `limit`, including those of padding and
    of unknown words. Equally frequent words keep the order of the source.
    """
    largest = max(int(values.max()) for values in x.values())
    ids = word_ids(x["train"], largest, limit)
    # the ids of padding and of unknown words exist even without any known word
    vocabulary = max(int(ids.max()), UNKNOWN) + 1
    return {split: ids[values.astype(np.int64)] for split, values in x.items()}, vocabulary


def word_ids(train: NDArray[np.float64], largest: int, limit: int) -> NDArray[np.float64]:
    """Return the id that `limit_vocabulary` assigns to each word number 0 ... `largest`: float64 [largest +
    1]."""
    counts = np.bincount(train.astype(np.int64).ravel(), minlength=largest + 1)
    counts[0] = 0
    words = np.argsort(-counts, kind="stable")
    words = words[counts[words] > 0][: limit - UNKNOWN - 1]
    ids = np.full(largest + 1, float(UNKNOWN))
    ids[0] = 0.0
    ids[words] = np.arange(len(words)) + UNKNOWN + 1
    return ids


def mean_and_std(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of every column; a constant column gets a standard deviation of 1.

    Cumulative sums have a fixed order of additions, while that of `np.mean` depends on the processor.
    """
    rows = len(values)
    mean = np.cumsum(values, axis=0)[-1] / rows
    variance = np.cumsum((values - mean) ** 2, axis=0)[-1] / rows
    constant = values.max(axis=0) == values.min(axis=0)
    return mean, np.where(constant, 1.0, np.sqrt(variance))
