"""Create the data files of this folder from the packages that contain the originals (see SOURCES.md).

    python -m harness.core.data.files.make aeon-1.6.0-py3-none-any.whl vaderSentiment-3.3.2.tar.gz

The files are reproducible to the byte with the same version of zlib.
"""

from __future__ import annotations

import io
import re
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.data.loaders.embedded import WORD

HERE = Path(__file__).resolve().parent
TOKEN = re.compile(WORD)


def main(wheel: str, archive: str) -> None:
    """Write all files. `wheel` is aeon's wheel, `archive` the source archive of vaderSentiment."""
    with zipfile.ZipFile(wheel) as aeon:
        series, speakers = _ts_files(aeon, "JapaneseVowels")
        np.savez_compressed(
            HERE / "japanese_vowels.npz",
            steps=np.concatenate(series),
            lengths=np.array([len(each) for each in series], dtype=np.uint8),
            speaker=speakers,
        )
        series, halves = _ts_files(aeon, "ItalyPowerDemand")
        np.savez_compressed(HERE / "italy_power_demand.npz", load=np.stack(series)[:, :, 0], half=halves)
    np.savez_compressed(HERE / "movie_reviews.npz", allow_pickle=False, **_reviews(_snippets(archive)))


def _ts_files(wheel: zipfile.ZipFile, name: str) -> tuple[list[NDArray[np.float32]], NDArray[np.uint8]]:
    """Read the series [steps, channels] and class numbers (from 0) of a .ts data set, training part first."""
    series, labels = [], []
    for part in ("TRAIN", "TEST"):
        text = wheel.read(f"aeon/datasets/data/{name}/{name}_{part}.ts").decode()
        for line in text.partition("@data\n")[2].splitlines():
            *channels, label = line.split(":")
            values = [np.array(channel.split(","), dtype=np.float64) for channel in channels]
            series.append(np.stack(values, axis=1).astype(np.float32))
            labels.append(int(label) - 1)
    return series, np.array(labels, dtype=np.uint8)


def _snippets(archive: str) -> list[tuple[float, str]]:
    """Read score (-4 ... 4, the mean of at least 15 people) and text of every sentence."""
    with tarfile.open(archive) as package:
        inner = package.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as resources:
            file = resources.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            assert file is not None
            rows = (line.split("\t") for line in file.read().decode("utf-8").splitlines())
            return [(float(score), text) for _, score, text in rows]


def _reviews(snippets: list[tuple[float, str]]) -> dict[str, NDArray[Any]]:
    """Return the sentences, concatenated, as word numbers; 1 is the most frequent word of the file.

    Sentences with a score of 0, and those with the same tokens as an earlier one, are left out.
    """
    positive: dict[tuple[str, ...], bool] = {}
    for score, text in snippets:
        tokens = tuple(TOKEN.findall(text.lower()))
        if score != 0 and tokens:
            positive.setdefault(tokens, score > 0)
    counts = Counter(token for tokens in positive for token in tokens)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    number = {word: index for index, word in enumerate(words, start=1)}
    return {
        "words": np.array([number[token] for tokens in positive for token in tokens], dtype=np.uint16),
        "lengths": np.array([len(tokens) for tokens in positive], dtype=np.uint8),
        "positive": np.array(list(positive.values()), dtype=np.uint8),
        "spelling": np.frombuffer("\n".join(words).encode(), dtype=np.uint8),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
