"""Refit the preprocessing of a trained network, for a model that is used outside of the project.

A trained network is useless without its preprocessing, so an export fits it again from the same raw rows. The
result is applied to the raw test rows and must reproduce those of the data set bit for bit, so a change of
`harness/core/data/dataset.py` that is missing here cannot go unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.data import preprocessing
from harness.core.data.dataset import DataConfig, Dataset, read
from harness.core.data.split import split_rows
from harness.core.export.exporter import Scaling
from harness.core.validation import ConfigError, Mistake


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """The fitted preprocessing, and the raw test rows.

    x: float64 [rows, *sample], raw (token ids if the source has words, which are not scaled).
    lengths: int64 [rows] if they differ. inputs, outputs: see `harness.core.export.exporter.Export`.
    words: the ids of the words of the vocabulary, if the source has their spelling. pattern: the regular
    expression that matches words in lower-case text.
    """

    x: NDArray[np.float64]
    lengths: NDArray[np.int64] | None
    inputs: Scaling | None
    outputs: Scaling | None
    words: dict[str, int]
    pattern: str

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by name, for a file."""
        arrays: dict[str, NDArray[Any]] = {"x": self.x}
        if self.lengths is not None:
            arrays["lengths"] = self.lengths
        for name, scaling in (("input", self.inputs), ("output", self.outputs)):
            if scaling is not None:
                arrays |= {f"{name}_mean": scaling.mean, f"{name}_scale": scaling.scale}
        return arrays


def refit(config: DataConfig, dataset: Dataset) -> Preprocessing:
    """Fit the preprocessing of `dataset`, a model's view of the data set that `config` describes, again.

    Raises ConfigError if the source no longer has the rows of `dataset`.
    """
    raw = read(config)
    parts = split_rows(raw, config.test_fraction, config.val_fraction, config.split_seed)
    train, test = parts["train"], parts["test"]
    lengths = None if raw.lengths is None else raw.lengths[test]
    x, inputs, words = raw.x[test], None, {}
    if raw.vocabulary:
        ids = preprocessing.word_ids(raw.x[train], int(raw.x.max()), raw.vocabulary)
        x = ids[x.astype(np.int64)]
        in_vocabulary = np.flatnonzero(ids > preprocessing.UNKNOWN)
        words = {raw.words[number - 1]: int(ids[number]) for number in in_vocabulary} if raw.words else {}
    elif config.standardise:
        train_lengths = None if raw.lengths is None else raw.lengths[train]
        rows = preprocessing.rows_to_fit(raw.x[train], raw.sequence, train_lengths)
        inputs = Scaling(*preprocessing.mean_and_std(rows))
    _check(x, lengths, inputs, dataset)
    return Preprocessing(x, lengths, inputs, _outputs(dataset, inputs), words, raw.pattern if words else "")


def _check(
    x: NDArray[np.float64], lengths: NDArray[np.int64] | None, inputs: Scaling | None, dataset: Dataset
) -> None:
    scaled = x if inputs is None else (x - inputs.mean) / inputs.scale
    if lengths is not None and inputs is not None:
        valid = np.arange(x.shape[1]) < lengths[:, None]
        scaled = np.where(valid[:, :, None], scaled, 0.0)
    if not np.array_equal(scaled, dataset.x["test"]):
        problem = f"the rows of {dataset.name} differ from those that the run was trained on"
        raise ConfigError([Mistake("data.name", problem)])


def _outputs(dataset: Dataset, inputs: Scaling | None) -> Scaling | None:
    match dataset.task.kind:
        case "regression":
            scaling = Scaling(dataset.target_mean, dataset.target_std)
        case "reconstruction" if inputs is not None:
            scaling = inputs.broadcast(dataset.sample_shape)
        case _:
            return None
    return scaling if np.any(scaling.mean != 0.0) or np.any(scaling.scale != 1.0) else None
