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
    fitted = x["train"]
    if lengths is not None:
        fitted = fitted[_valid(fitted, lengths["train"])]
    elif sequence:
        fitted = fitted.reshape(-1, fitted.shape[-1])
    mean, std = scale(fitted)
    scaled = {split: (values - mean) / std for split, values in x.items()}
    if lengths is None:
        return scaled
    return {
        split: np.where(_valid(values, lengths[split])[:, :, None], values, 0.0)
        for split, values in scaled.items()
    }


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
    numbers = {split: values.astype(np.int64) for split, values in x.items()}
    size = 1 + max(int(values.max()) for values in numbers.values())
    counts = np.bincount(numbers["train"].ravel(), minlength=size)
    counts[0] = 0
    words = np.argsort(-counts, kind="stable")
    words = words[counts[words] > 0][: limit - UNKNOWN - 1]
    ids = np.full(size, float(UNKNOWN))
    ids[0] = 0.0
    ids[words] = np.arange(len(words)) + UNKNOWN + 1
    return {split: ids[values] for split, values in numbers.items()}, len(words) + UNKNOWN + 1


def scale(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of every column; a constant column gets the deviation 1.

    Running sums have one possible order of additions; `np.mean` has one per processor type.
    """
    rows = len(values)
    mean = np.cumsum(values, axis=0)[-1] / rows
    variance = np.cumsum((values - mean) ** 2, axis=0)[-1] / rows
    constant = values.max(axis=0) == values.min(axis=0)
    return mean, np.where(constant, 1.0, np.sqrt(variance))
