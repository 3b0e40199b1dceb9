"""Data sets in this package: `harness/core/data/files`, whose SOURCES.md lists sources and licences."""

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
# a word with the apostrophes inside it, or a single other character
WORD = r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]|_"


def japanese_vowels() -> Raw:
    """640 utterances of two vowels, 12 LPC cepstra in 7 ... 29 steps, 9 speakers (Kudo et al. 1999; UCI 128).

    The published parts: 270 for training, 370 for testing.
    """
    file = npz.load(FILES / "japanese_vowels.npz")
    lengths = file["lengths"].astype(np.int64)
    names = tuple(f"speaker {number}" for number in range(1, 10))
    x = _padded(file["steps"], lengths)
    return classes(x, file["speaker"], names, test_from=270, sequence=True, lengths=lengths)


def italy_power_demand() -> Raw:
    """1096 days of 24 hourly loads, each day scaled to mean 0 and deviation 1, winter or summer half year.

    The published parts: 67 days for training, 1029 for testing (Keogh et al. 2006; UCR archive).
    """
    file = npz.load(FILES / "italy_power_demand.npz")
    names = ("October to March", "April to September")
    return classes(file["load"][:, :, None], file["half"], names, test_from=67, sequence=True)


def movie_reviews(*, vocabulary: Annotated[int, Range(min=3)] = 5000, max_length: Count = 40) -> Raw:
    """10,566 sentences of film reviews as word numbers, negative or positive (Hutto & Gilbert 2014).

    Each is cut to its first `max_length` tokens. `vocabulary` is the number of ids: padding, the unknown
    word, and the most frequent words of the training part.
    """
    file = npz.load(FILES / "movie_reviews.npz")
    full_lengths = file["lengths"].astype(np.int64)
    x = _padded(file["words"], full_lengths)[:, :max_length]
    lengths = np.minimum(full_lengths, max_length)
    words = tuple(file["spelling"].tobytes().decode().split("\n"))
    raw = classes(x, file["positive"], ("negative", "positive"), lengths=lengths, vocabulary=vocabulary)
    return replace(raw, words=words, pattern=WORD)


def _padded(steps: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Convert concatenated sequences [steps, ...] to rows [rows, longest, ...], padded with 0 at the end."""
    valid = np.arange(lengths.max()) < lengths[:, None]
    rows = np.zeros((*valid.shape, *steps.shape[1:]))
    rows[valid] = steps
    return rows
