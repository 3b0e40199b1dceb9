"""Data sets that are part of this package: `harness/core/data/files`, where their sources and licences
stand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from harness.core.data.loaders.raw import Count, Raw, classes
from harness.core.storage import npz
from harness.core.validation import Range

FILES = Path(__file__).resolve().parents[1] / "files"
# a word with the apostrophes inside it, or one other sign
WORD = r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]|_"


def japanese_vowels() -> Raw:
    """640 utterances of two vowels, 12 LPC cepstra in 7 ... 29 steps, 9 speakers (Kudo et al. 1999; UCI 128).

    The published parts: 270 to train on, 370 to test.
    """
    file = npz.load(FILES / "japanese_vowels.npz")
    lengths = file["lengths"].astype(np.int64)
    names = tuple(f"speaker {number}" for number in range(1, 10))
    x = _padded(file["steps"], lengths)
    return classes(x, file["speaker"], names, test_from=270, sequence=True, lengths=lengths)


def italy_power_demand() -> Raw:
    """1096 days of 24 hourly loads, each day scaled to mean 0 and deviation 1, winter or summer half year.

    The published parts: 67 days to train on, 1029 to test (Keogh et al. 2006; UCR archive).
    """
    file = npz.load(FILES / "italy_power_demand.npz")
    names = ("October to March", "April to September")
    return classes(file["load"][:, :, None], file["half"], names, test_from=67, sequence=True)


def movie_reviews(*, vocabulary: Annotated[int, Range(min=3)] = 5000, max_length: Count = 40) -> Raw:
    """10,566 sentences of film reviews as numbers of words, negative or positive (Hutto & Gilbert 2014).

    Of each the first `max_length` tokens. `vocabulary` counts the ids that are kept: padding, the unknown
    word, and the words that are the most frequent in the training part.
    """
    file = npz.load(FILES / "movie_reviews.npz")
    whole = file["lengths"].astype(np.int64)
    x = _padded(file["words"], whole)[:, :max_length]
    lengths = np.minimum(whole, max_length)
    words = tuple(file["spelling"].tobytes().decode().split("\n"))
    made = classes(x, file["positive"], ("negative", "positive"), lengths=lengths, vocabulary=vocabulary)
    return replace(made, words=words, pattern=WORD)


def _padded(steps: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sequences one after the other, [steps, ...], as rows [rows, longest, ...] with 0 at the end."""
    valid = np.arange(lengths.max()) < lengths[:, None]
    rows = np.zeros((*valid.shape, *steps.shape[1:]))
    rows[valid] = steps
    return rows
