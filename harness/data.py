"""From the name of a data set to the arrays that every framework trains on, and the order of the batches.

All of it is made once, with NumPy, and handed to the frameworks: rows, splits, scaling and batches are then
the same by construction. The splits come from `harness/rng.py` rather than from scikit-learn, so that they
are the same for every version; means are taken in a fixed order of summation, so that they are the same on
every machine. Whatever is fitted (standardisation) is fitted on the training rows only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from harness import npz, rng
from harness.loaders import LOADERS, Raw, Task
from harness.parse import ConfigError, Mistake, OneOf, Range, nearest, parse, to_plain

__all__ = [
    "SPLITS",
    "DataConfig",
    "Dataset",
    "Task",
    "batch_order",
    "check",
    "effective_batch",
    "load",
    "names",
    "open_dataset",
    "save",
]

SPLITS = ("train", "val", "test")

Fraction = Annotated[float, Range(min=0.0, max=1.0, exclusive_min=True, exclusive_max=True)]


@dataclass(frozen=True)
class DataConfig:
    """The section `data` of a configuration: which data set, how it is split and scaled."""

    name: Annotated[str, OneOf(tuple(LOADERS))]
    split_seed: Annotated[int, Range(min=0)] = 0
    test_fraction: Fraction = 0.2
    val_fraction: Fraction = 0.1
    standardise: bool = True
    standardise_targets: bool = True
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set that is ready to be trained on.

    x: float64 [rows, *sample_shape] by split. y by split: int64 class numbers [rows], or float64
    [rows, targets] in training units; `y * target_std + target_mean` gives the original ones.
    target_mean, target_std: float64 [task.outputs]; 0 and 1 where targets are not standardised.
    """

    name: str
    task: Task
    x: dict[str, NDArray[np.float64]]
    y: dict[str, NDArray[Any]]
    target_mean: NDArray[np.float64]
    target_std: NDArray[np.float64]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one row of x."""
        return self.x["train"].shape[1:]

    def rows(self, split: str) -> int:
        """The number of rows of a split."""
        return len(self.x[split])

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that a training sees: task, shapes, values, scaling."""
        digest = hashlib.sha256(_description(self).encode())
        for name, array in _arrays(self).items():
            digest.update(f"{name} {array.shape} {array.dtype.str}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def names() -> tuple[str, ...]:
    """The data sets that can be loaded."""
    return tuple(LOADERS)


def check(config: DataConfig) -> list[Mistake]:
    """What is wrong with `config`, as far as it shows without loading: name, options, fractions."""
    mistakes: list[Mistake] = []
    if config.name in LOADERS:
        try:
            _options(config)
        except ConfigError as error:
            mistakes.extend(error.mistakes)
    else:
        problem, known = f"{config.name!r} is not known", names()
        mistakes.append(Mistake("data.name", problem, ", ".join(known), nearest(config.name, known)))
    if config.test_fraction + config.val_fraction >= 1.0:
        problem = (
            f"test_fraction {config.test_fraction:g} and val_fraction {config.val_fraction:g} "
            "leave no rows to train on"
        )
        mistakes.append(Mistake("data", problem, "fractions whose sum is below 1"))
    return mistakes


def load(config: DataConfig) -> Dataset:
    """Load, split and standardise. Raises ConfigError for whatever `check` finds or the rows don't allow."""
    mistakes = check(config)
    if mistakes:
        raise ConfigError(mistakes)
    raw = LOADERS[config.name](**to_plain(_options(config)))
    parts = _split(raw, config)
    x = {split: raw.x[rows] for split, rows in parts.items()}
    y = {split: raw.y[rows] for split, rows in parts.items()}
    if config.standardise:
        mean, std = _scale(x["train"])
        x = {split: (values - mean) / std for split, values in x.items()}
    target_mean, target_std = np.zeros(raw.task.outputs), np.ones(raw.task.outputs)
    if raw.task.kind == "regression" and config.standardise_targets:
        target_mean, target_std = _scale(y["train"])
        y = {split: (values - target_mean) / target_std for split, values in y.items()}
    return Dataset(config.name, raw.task, x, y, target_mean, target_std)


def effective_batch(rows: int, batch_size: int) -> int:
    """The rows of a batch in fact: more than there are can't be asked for."""
    return min(rows, batch_size)


def batch_order(seed: int, epoch: int, rows: int, batch_size: int) -> NDArray[np.int32]:
    """Which rows of the training part make up each step of an epoch: int32 [steps, batch].

    A new permutation each epoch. The rows that don't fill a batch are left out, which are others in every
    epoch: all batches then have one shape (nothing is compiled twice) and no framework's own way with a
    smaller last batch can matter.
    """
    batch = effective_batch(rows, batch_size)
    steps = rows // batch
    order = rng.permutation(rows, "order", seed, epoch)[: steps * batch]
    return order.reshape(steps, batch).astype(np.int32)


def save(dataset: Dataset, path: Path) -> None:
    """Write `dataset` to an npz file, at once or not at all; nothing is pickled."""
    npz.save(path, {"description": np.array(_description(dataset)), **_arrays(dataset)})


def open_dataset(path: Path) -> Dataset:
    """Read what `save` wrote."""
    arrays = npz.load(path)
    description = json.loads(str(arrays["description"]))
    return Dataset(
        name=description["name"],
        task=parse(Task, description["task"]),
        x={split: arrays[f"x.{split}"] for split in SPLITS},
        y={split: arrays[f"y.{split}"] for split in SPLITS},
        target_mean=arrays["target_mean"],
        target_std=arrays["target_std"],
    )


def _description(dataset: Dataset) -> str:
    return json.dumps({"name": dataset.name, "task": to_plain(dataset.task)}, sort_keys=True)


def _arrays(dataset: Dataset) -> dict[str, NDArray[Any]]:
    return {
        **{f"x.{split}": dataset.x[split] for split in SPLITS},
        **{f"y.{split}": dataset.y[split] for split in SPLITS},
        "target_mean": dataset.target_mean,
        "target_std": dataset.target_std,
    }


def _options(config: DataConfig) -> Any:
    """The options as the dataclass that the loader's signature describes, defaults filled in."""
    return parse(_options_type(LOADERS[config.name]), config.options, "data.options")


def _options_type(loader: Callable[..., Raw]) -> type:
    hints = typing.get_type_hints(loader, include_extras=True)
    parameters = inspect.signature(loader).parameters.values()
    return dataclasses.make_dataclass(
        f"{loader.__name__}_options",
        [(p.name, hints[p.name], field(default=p.default)) for p in parameters],
        frozen=True,
    )


def _split(raw: Raw, config: DataConfig) -> dict[str, NDArray[np.int64]]:
    """Row numbers by split, each in shuffled order; classes are as frequent in each as in the whole."""
    rows = len(raw.x)
    if raw.whole:
        return dict.fromkeys(SPLITS, np.arange(rows))
    regression = raw.task.kind == "regression"
    stratum = np.zeros(rows, dtype=np.int64) if regression else raw.y
    strata = 1 if regression else raw.task.outputs
    counts = np.bincount(stratum, minlength=strata)
    held_back = {
        "test": _apportion(counts, round(config.test_fraction * rows)),
        "val": _apportion(counts, round(config.val_fraction * rows)),
    }
    order = rng.permutation(rows, "split", config.split_seed)
    members = [order[stratum[order] == number] for number in range(strata)]
    part = np.full(rows, "train", dtype="<U5")
    for number, of_stratum in enumerate(members):
        test, val = int(held_back["test"][number]), int(held_back["val"][number])
        part[of_stratum[:test]] = "test"
        part[of_stratum[test : test + val]] = "val"
    parts = {split: order[part[order] == split] for split in SPLITS}
    _refuse_empty(parts, stratum, raw.task, config)
    return parts


def _refuse_empty(
    parts: dict[str, NDArray[np.int64]], stratum: NDArray[np.int64], task: Task, config: DataConfig
) -> None:
    rows = len(stratum)
    mistakes = [
        Mistake(
            f"data.{split}_fraction",
            f"{getattr(config, f'{split}_fraction'):g} of {rows} rows is not even one",
            f">= {1 / rows:.2g}",
        )
        for split in ("test", "val")
        if not len(parts[split])
    ]
    missing = sorted(set(range(task.outputs)) - set(stratum[parts["train"]].tolist()))
    if task.kind == "classification" and missing:
        lost = ", ".join(task.names[number] for number in missing)
        mistakes.append(
            Mistake("data", f"no row to train on is left for the class {lost}", "smaller fractions")
        )
    if mistakes:
        raise ConfigError(mistakes)


def _apportion(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Spread `total` over strata in proportion to `counts` by largest remainders (Hamilton's method)."""
    shares, remainders = np.divmod(counts * total, counts.sum())
    extra = np.argsort(-remainders, kind="stable")[: total - int(shares.sum())]
    shares[extra] += 1
    return shares


def _scale(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of every column; a constant column gets the deviation 1.

    Running sums have one possible order of additions; `np.mean` has one per processor type.
    """
    rows = len(values)
    mean = np.cumsum(values, axis=0)[-1] / rows
    variance = np.cumsum((values - mean) ** 2, axis=0)[-1] / rows
    constant = values.max(axis=0) == values.min(axis=0)
    return mean, np.where(constant, 1.0, np.sqrt(variance))
