"""Descriptions of the rows of each data set, without loading it.

Loading takes up to seconds, and a request for an image network on tabular data should be refused at once,
with the data sets that fit such a network. Each entry is a function of the loader's options; a test compares
it with the loader's result.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.core.data.loaders.raw import Task
from harness.core.network import Input, Shape

Description = tuple[Input, Task]


def _classes(shape: Shape, count: int) -> Description:
    return Input(shape), Task("classification", count, ())


def _number(shape: Shape) -> Description:
    return Input(shape), Task("regression", 1, ())


def _sequences(steps: int, features: int, classes: int, *, lengths: bool = False) -> Description:
    sample = Input((steps, features), lengths=lengths, sequence=True)
    return sample, Task("classification", classes, ())


def _adding_problem(steps: int, **options: object) -> Description:
    return Input((steps, 2), sequence=True), Task("regression", 1, ())


def _movie_reviews(vocabulary: int, max_length: int) -> Description:
    # the vocabulary may be smaller; which layers accept the ids does not depend on its size
    return Input((max_length,), vocabulary, True, True), Task("classification", 2, ())


SAMPLES: dict[str, Callable[..., Description]] = {
    "digits": lambda: _classes((8, 8), 10),
    "breast_cancer": lambda: _classes((30,), 2),
    "wine": lambda: _classes((13,), 3),
    "iris": lambda: _classes((4,), 3),
    "diabetes": lambda: _number((10,)),
    "make_classification": lambda n_features, n_classes, **options: _classes((n_features,), n_classes),
    "xor": lambda: _classes((2,), 2),
    "linear": lambda **options: _number((1,)),
    "adding_problem": _adding_problem,
    "italy_power_demand": lambda: _sequences(24, 1, 2),
    "japanese_vowels": lambda: _sequences(29, 12, 9, lengths=True),
    "mnist_1d": lambda: _sequences(40, 1, 10),
    "mnist_5k": lambda: _classes((28, 28), 10),
    "movie_reviews": _movie_reviews,
}
