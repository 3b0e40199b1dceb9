"""How the rows of a data set, as they come from their source, became what a network was trained on.

A trained network is worth nothing without it, so it is fitted once more, from the same rows, where a model
leaves the project. What comes out is applied to the test rows and must give those of the data set bit for
bit: whatever `harness/core/data/dataset.py` does to rows, this can't silently miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.data import preprocessing as fitted
from harness.core.data.dataset import DataConfig, Dataset, read
from harness.core.data.loaders import Raw
from harness.core.data.split import split_rows
from harness.core.export.exporter import Scaling
from harness.core.validation import ConfigError, Mistake


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """What was fitted, and the test rows that it is for.

    x: float64 [rows, *sample], as they come (token ids where the source has words: nothing scales those).
    lengths: int64 [rows] where they differ. inputs, outputs: see `harness.core.export.exporter.Export`.
    words: the ids of the words of the vocabulary, where the source spells them. pattern: the regular
    expression whose matches in a lower-case text are its words.
    """

    x: NDArray[np.float64]
    lengths: NDArray[np.int64] | None
    inputs: Scaling | None
    outputs: Scaling | None
    words: dict[str, int]
    pattern: str

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All but the words, by name, for a file."""
        found: dict[str, NDArray[Any]] = {"x": self.x}
        if self.lengths is not None:
            found["lengths"] = self.lengths
        for name, scaling in (("input", self.inputs), ("output", self.outputs)):
            if scaling is not None:
                found |= {f"{name}_mean": scaling.mean, f"{name}_scale": scaling.scale}
        return found


def preprocessing(config: DataConfig, dataset: Dataset) -> Preprocessing:
    """What was fitted for `dataset`, which is the view of a model on what `config` describes.

    Raises ConfigError where the source gives other rows than those of `dataset`.
    """
    raw = read(config)
    parts = split_rows(raw, config.test_fraction, config.val_fraction, config.split_seed)
    train, test = parts["train"], parts["test"]
    lengths = None if raw.lengths is None else raw.lengths[test]
    x, inputs, words = raw.x[test], None, {}
    if raw.vocabulary:
        ids = fitted.word_ids(raw.x[train], int(raw.x.max()), raw.vocabulary)
        x = ids[x.astype(np.int64)]
        known = np.flatnonzero(ids > fitted.UNKNOWN)
        words = {raw.words[number - 1]: int(ids[number]) for number in known} if raw.words else {}
    elif config.standardise:
        inputs = Scaling(
            *fitted.scale(
                fitted.fitting_rows(
                    raw.x[train], raw.sequence, None if raw.lengths is None else raw.lengths[train]
                )
            )
        )
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
        problem = f"the rows of {dataset.name} are other ones now than those that were prepared"
        raise ConfigError([Mistake("data.name", problem)])


def _outputs(dataset: Dataset, inputs: Scaling | None) -> Scaling | None:
    match dataset.task.kind:
        case "regression":
            found = Scaling(dataset.target_mean, dataset.target_std)
        case "reconstruction" if inputs is not None:
            found = inputs.spread(dataset.sample_shape)
        case _:
            return None
    return found if np.any(found.mean != 0.0) or np.any(found.scale != 1.0) else None


__all__ = ["Preprocessing", "Raw", "preprocessing"]
