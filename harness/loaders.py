"""The data sets that are there without the internet: one small function each.

A loader returns the raw rows. Splitting and standardising are the same for all and live in `harness/data.py`.
A loader's keyword parameters are its options: their names, types, bounds (`Annotated[...]`) and defaults are
what `data.options` in a configuration may hold. To add a data set: one function, one line in LOADERS, one
`conf/data/<name>.yaml`.

scikit-learn (BSD-3-Clause) is imported inside the loaders, since it takes about a second and the workers,
which read a prepared file, never need it. The UCI sets that it ships are under CC BY 4.0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.parse import ConfigError, Mistake, Range

Count = Annotated[int, Range(min=1)]
Seed = Annotated[int, Range(min=0, max=2**32 - 1)]


@dataclass(frozen=True)
class Task:
    """What is to be predicted: one of `outputs` classes, or `outputs` numbers, with a name each."""

    kind: Literal["classification", "regression"]
    outputs: int
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Raw:
    """Rows as they come: x float64 [rows, *sample_shape]; y int64 [rows] or float64 [rows, targets].

    `whole`: too few rows to hold any back, so each of train, validation and test is the whole set.
    """

    x: NDArray[np.float64]
    y: NDArray[Any]
    task: Task
    whole: bool = False


def _classes(x: Any, y: Any, names: tuple[str, ...], whole: bool = False) -> Raw:
    task = Task("classification", len(names), names)
    return Raw(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.int64), task, whole)


def _targets(x: Any, y: Any, names: tuple[str, ...]) -> Raw:
    task = Task("regression", len(names), names)
    rows = np.asarray(x, dtype=np.float64)
    return Raw(rows, np.asarray(y, dtype=np.float64).reshape(len(rows), len(names)), task)


def digits() -> Raw:
    """1797 handwritten digits, 8 x 8 pixels of 0 ... 16, 10 classes (Alpaydin & Kaynak 1998; UCI 80)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _classes(bunch.images, bunch.target, tuple(str(digit) for digit in bunch.target_names))


def breast_cancer() -> Raw:
    """569 tumours, 30 measures of cell nuclei, malignant or benign (Street et al. 1993; UCI 17)."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return _classes(bunch.data, bunch.target, tuple(str(name) for name in bunch.target_names))


def wine() -> Raw:
    """178 wines, 13 chemical measures, 3 growers (Aeberhard & Forina 1991; UCI 109)."""
    from sklearn.datasets import load_wine

    bunch = load_wine()
    return _classes(bunch.data, bunch.target, tuple(str(name) for name in bunch.target_names))


def iris() -> Raw:
    """150 flowers, 4 lengths in cm, 3 species (Fisher 1936; UCI 53)."""
    from sklearn.datasets import load_iris

    bunch = load_iris()
    return _classes(bunch.data, bunch.target, tuple(str(name) for name in bunch.target_names))


def diabetes() -> Raw:
    """442 patients, 10 measures, progression after a year (Efron et al. 2004; licence of scikit-learn)."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return _targets(bunch.data, bunch.target, ("progression",))


def make_classification(
    *,
    n_samples: Count = 1000,
    n_features: Count = 20,
    n_informative: Count = 2,
    n_classes: Annotated[int, Range(min=2)] = 2,
    random_state: Seed = 42,
) -> Raw:
    """Clusters at the corners of a hypercube, by scikit-learn's generator (Guyon 2003); made, no licence."""
    from sklearn import datasets

    try:
        x, y = datasets.make_classification(
            n_samples=n_samples,
            n_features=n_features,
            n_informative=n_informative,
            n_classes=n_classes,
            random_state=random_state,
        )
    except ValueError as error:  # what the numbers may be together, only the generator knows
        raise ConfigError([Mistake("data.options", " ".join(str(error).split()))]) from error
    return _classes(x, y, tuple(str(label) for label in range(n_classes)))


def xor() -> Raw:
    """The four rows of the exclusive or (Minsky & Papert 1969); each split is all of them."""
    x = np.array(list(itertools.product((0, 1), repeat=2)))
    return _classes(x, x[:, 0] ^ x[:, 1], ("0", "1"), whole=True)


def linear(*, slope: float = 2.0, intercept: float = 1.0) -> Raw:
    """y = slope * x + intercept for x = 0 ... 99: the smallest regression with an exact answer."""
    x = np.arange(100.0).reshape(-1, 1)
    return _targets(x, slope * x + intercept, ("y",))


LOADERS: dict[str, Callable[..., Raw]] = {
    loader.__name__: loader
    for loader in (digits, breast_cancer, wine, iris, diabetes, make_classification, xor, linear)
}
