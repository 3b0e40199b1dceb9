"""Load a data set by name as the arrays that every framework trains on.

The arrays are prepared once, with NumPy, so rows, splits and scaling are the same in all frameworks by
construction. Means use a fixed order of summation, so that they are the same on every machine.
Standardisation and vocabulary are fitted to the training rows only.

Sequences of unequal length are padded with zeros at the end and have lengths; their features are standardised
over the valid steps, and the padding stays exactly zero. Token ids are integers stored in the float64 `x`,
exact up to 2**53, and are never standardised: 0 is padding, 1 a word outside the vocabulary, 2 the most
frequent word of the training part, and so on.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from harness.core.data.loaders import LOADERS, SAMPLES, Raw, Sample, Task
from harness.core.data.preprocessing import limit_vocabulary, mean_and_std, standardise
from harness.core.data.split import SPLITS, split_rows
from harness.core.network import Input
from harness.core.storage import npz
from harness.core.validation import ConfigError, Mistake, OneOf, Range, nearest, parse, to_plain

__all__ = [
    "SPLITS",
    "DataConfig",
    "Dataset",
    "Sample",
    "Task",
    "as_reconstruction",
    "check",
    "load",
    "names",
    "open_dataset",
    "read",
    "reconstruction_task",
    "sample",
    "save",
]

Fraction = Annotated[float, Range(min=0.0, max=1.0, exclusive_min=True, exclusive_max=True)]


FORMAT = 3
"""The version of the file that `save` writes; incremented when its content changes."""


@dataclass(frozen=True)
class DataConfig:
    """The section `data` of a configuration: which data set, how it is split and scaled.

    A set that was published with a test part keeps it: `test_fraction` then has no effect, and
    `val_fraction` refers to the other rows. `standardise` has no effect on token ids.
    """

    name: Annotated[str, OneOf(tuple(LOADERS))]
    split_seed: Annotated[int, Range(min=0)] = 0
    test_fraction: Fraction = 0.2
    val_fraction: Fraction = 0.1
    standardise: bool = True
    standardise_targets: bool = True
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set ready for training.

    x: float64 [rows, *sample_shape] by split. y by split: int64 class numbers [rows], or float64
    [rows, targets] in training units; `y * target_std + target_mean` gives the original units.
    target_mean, target_std: float64 [task.outputs]; 0 and 1 if targets are not standardised.
    lengths: valid steps by split, int64 [rows], if rows are sequences [steps, ...] of unequal length; later
    steps are 0. vocabulary: the number of token ids (0: x are measurements). sequence: rows are
    [steps, features], or [steps] of token ids.
    """

    name: str
    task: Task
    x: dict[str, NDArray[np.float64]]
    y: dict[str, NDArray[Any]]
    target_mean: NDArray[np.float64]
    target_std: NDArray[np.float64]
    lengths: dict[str, NDArray[np.int64]] | None = None
    vocabulary: int = 0
    sequence: bool = False

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one row of x."""
        return self.x["train"].shape[1:]

    @property
    def input(self) -> Input:
        """The description of one row for a network."""
        return Input(self.sample_shape, self.vocabulary, self.lengths is not None, self.sequence)

    @property
    def sample(self) -> Sample:
        """The description of one row and its task."""
        return Sample(self.name, self.input, self.task)

    def rows(self, split: str) -> int:
        """Return the number of rows of a split."""
        return len(self.x[split])

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of everything that a training uses: task, shapes, values, scaling."""
        digest = hashlib.sha256(_description(self).encode())
        for name, array in _arrays(self).items():
            digest.update(f"{name} {array.shape} {array.dtype.str}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def names() -> tuple[str, ...]:
    """Return the names of all data sets."""
    return tuple(LOADERS)


def check(config: DataConfig) -> list[Mistake]:
    """Return the mistakes in `config` that show without loading: name, options, fractions."""
    mistakes: list[Mistake] = []
    if config.name in LOADERS:
        try:
            _options(config)
        except ConfigError as error:
            mistakes.extend(error.mistakes)
    else:
        problem, suggestion = f"{config.name!r} is not known", nearest(config.name, names())
        mistakes.append(Mistake("data.name", problem, ", ".join(names()), suggestion))
    if config.test_fraction + config.val_fraction >= 1.0:
        problem = (
            f"test_fraction {config.test_fraction:g} and val_fraction {config.val_fraction:g} "
            "leave no rows to train on"
        )
        mistakes.append(Mistake("data", problem, "fractions whose sum is below 1"))
    return mistakes


def sample(config: DataConfig) -> Sample:
    """Describe one row of the data set without loading it. Raises ConfigError with the mistakes of `check`.

    The description has no class names, and the limit of the vocabulary instead of its size.
    """
    mistakes = check(config)
    if mistakes:
        raise ConfigError(mistakes)
    return Sample(config.name, *SAMPLES[config.name](**to_plain(_options(config))))


def read(config: DataConfig) -> Raw:
    """Read the raw rows from their source. Raises ConfigError with the mistakes of `check`."""
    mistakes = check(config)
    if mistakes:
        raise ConfigError(mistakes)
    return LOADERS[config.name](**to_plain(_options(config)))


def load(config: DataConfig) -> Dataset:
    """Load, split and standardise. Raises ConfigError with the mistakes of `check` or those of a split."""
    raw = read(config)
    parts = split_rows(raw, config.test_fraction, config.val_fraction, config.split_seed)
    x = {split: raw.x[rows] for split, rows in parts.items()}
    y = {split: raw.y[rows] for split, rows in parts.items()}
    lengths = None if raw.lengths is None else {split: raw.lengths[rows] for split, rows in parts.items()}
    vocabulary = 0
    if raw.vocabulary:
        x, vocabulary = limit_vocabulary(x, raw.vocabulary)
    elif config.standardise:
        x = standardise(x, raw.sequence, lengths)
    target_mean, target_std = np.zeros(raw.task.outputs), np.ones(raw.task.outputs)
    if raw.task.kind == "regression" and config.standardise_targets:
        target_mean, target_std = mean_and_std(y["train"])
        y = {split: (values - target_mean) / target_std for split, values in y.items()}
    sequence = raw.sequence or vocabulary > 0
    return Dataset(config.name, raw.task, x, y, target_mean, target_std, lengths, vocabulary, sequence)


def as_reconstruction(dataset: Dataset) -> Dataset:
    """Return the same rows for an autoencoder: y is x, flattened to float64 [rows, outputs], in training
    units.

    Raises ConfigError like `reconstruction_task`.
    """
    task = reconstruction_task(dataset.sample)
    y = {split: values.reshape(len(values), -1) for split, values in dataset.x.items()}
    mean, std = np.zeros(task.outputs), np.ones(task.outputs)
    return dataclasses.replace(dataset, task=task, y=y, target_mean=mean, target_std=std)


def reconstruction_task(sample: Sample) -> Task:
    """Return the task of an autoencoder on such rows: to reconstruct them.

    Raises ConfigError for token ids, for which a squared error is meaningless, and for sequences of unequal
    length, whose padding would be reconstructed too.
    """
    if sample.input.vocabulary or sample.input.lengths:
        rows = "token ids" if sample.input.vocabulary else "sequences of unequal length"
        problem = f"an autoencoder can't reconstruct {rows}"
        raise ConfigError([Mistake("data.name", problem, "data of measurements, all of one shape")])
    return Task("reconstruction", math.prod(sample.input.shape), ())


def save(dataset: Dataset, path: Path) -> None:
    """Write `dataset` to an npz file, atomically; nothing is pickled."""
    description = {"description": np.array(_description(dataset)), "sequence": np.array(dataset.sequence)}
    npz.save(path, {**description, **_arrays(dataset)})


def open_dataset(path: Path) -> Dataset:
    """Read what `save` wrote."""
    arrays = npz.load(path)
    description = json.loads(str(arrays["description"]))
    padded = "lengths.train" in arrays
    return Dataset(
        name=description["name"],
        task=parse(Task, description["task"]),
        x={split: arrays[f"x.{split}"] for split in SPLITS},
        y={split: arrays[f"y.{split}"] for split in SPLITS},
        target_mean=arrays["target_mean"],
        target_std=arrays["target_std"],
        lengths={split: arrays[f"lengths.{split}"] for split in SPLITS} if padded else None,
        vocabulary=description["vocabulary"],
        sequence=bool(arrays["sequence"]),
    )


def _description(dataset: Dataset) -> str:
    plain = {"name": dataset.name, "task": to_plain(dataset.task), "vocabulary": dataset.vocabulary}
    return json.dumps(plain, sort_keys=True)


def _arrays(dataset: Dataset) -> dict[str, NDArray[Any]]:
    parts: dict[str, dict[str, NDArray[Any]]] = {"x": dataset.x, "y": dataset.y}
    if dataset.lengths is not None:
        parts["lengths"] = dataset.lengths
    return {
        **{f"{name}.{split}": values[split] for name, values in parts.items() for split in SPLITS},
        "target_mean": dataset.target_mean,
        "target_std": dataset.target_std,
    }


def _options(config: DataConfig) -> Any:
    """Parse the options into a dataclass derived from the loader's signature, with its defaults."""
    return parse(_options_type(LOADERS[config.name]), config.options, "data.options")


@functools.cache
def _options_type(loader: Callable[..., Raw]) -> type:
    hints = typing.get_type_hints(loader, include_extras=True)
    parameters = inspect.signature(loader).parameters.values()
    return dataclasses.make_dataclass(
        f"{loader.__name__}_options",
        [(p.name, hints[p.name], field(default=p.default)) for p in parameters],
        frozen=True,
    )
