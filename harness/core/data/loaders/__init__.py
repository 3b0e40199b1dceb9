"""Loaders of the data sets, one small function each; none needs the internet.

A loader returns the raw rows. Splitting and standardising are the same for all and are in
`harness/core/data/dataset.py`. A loader's keyword parameters are its options: their names, types, bounds
(`Annotated[...]`) and defaults define what `data.options` in a configuration may contain. To add a data set,
write one function, one line in LOADERS, one in SAMPLES, and one `conf/data/<name>.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.core.data.loaders.embedded import italy_power_demand, japanese_vowels, movie_reviews
from harness.core.data.loaders.generated import adding_problem, linear, mnist_1d, xor
from harness.core.data.loaders.packaged import (
    breast_cancer,
    diabetes,
    digits,
    iris,
    make_classification,
    mnist_5k,
    wine,
)
from harness.core.data.loaders.raw import Raw, Sample, Task
from harness.core.data.loaders.samples import SAMPLES

__all__ = ["LOADERS", "SAMPLES", "Raw", "Sample", "Task"]

LOADERS: dict[str, Callable[..., Raw]] = {
    loader.__name__: loader
    for loader in (
        digits,
        breast_cancer,
        wine,
        iris,
        diabetes,
        make_classification,
        xor,
        linear,
        adding_problem,
        italy_power_demand,
        japanese_vowels,
        mnist_1d,
        mnist_5k,
        movie_reviews,
    )
}
