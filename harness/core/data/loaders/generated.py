"""Generated data sets from the literature: small exact ones, and tasks for sequence models."""

from __future__ import annotations

import itertools
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from harness.core import rng
from harness.core.data.loaders.raw import Count, Raw, classes, targets
from harness.core.validation import Range


def xor() -> Raw:
    """The four rows of the exclusive or (Minsky & Papert 1969); each split is all of them."""
    x = np.array(list(itertools.product((0, 1), repeat=2)))
    return classes(x, x[:, 0] ^ x[:, 1], ("0", "1"), whole=True)


def linear(*, slope: float = 2.0, intercept: float = 1.0) -> Raw:
    """y = slope * x + intercept for x = 0 ... 99: the smallest regression with an exact answer."""
    x = np.arange(100.0).reshape(-1, 1)
    return targets(x, slope * x + intercept, ("y",))


def adding_problem(
    *,
    steps: Annotated[int, Range(min=2)] = 50,
    rows: Count = 10000,
    seed: Annotated[int, Range(min=0)] = 0,
) -> Raw:
    """The sum of two marked numbers of a sequence (Hochreiter & Schmidhuber 1997), in [rows, steps, 2].

    The first feature is uniform in [0, 1), the second is 1 at one step of each half and 0 elsewhere; the
    target is the sum of the two marked numbers. This is the form of Le, Jaitly & Hinton (2015), whose targets
    have variance 1/6: a model that always predicts 1 has an MSE of 0.167.
    """
    half = steps // 2
    values = rng.uniform((rows, steps), "adding_problem", seed, "values")
    position = rng.uniform((rows, 2), "adding_problem", seed, "places")
    first = (position[:, 0] * half).astype(np.int64)
    second = half + (position[:, 1] * (steps - half)).astype(np.int64)
    row = np.arange(rows)
    marks = np.zeros((rows, steps))
    marks[row, first] = marks[row, second] = 1.0
    total = values[row, first] + values[row, second]
    return targets(np.stack([values, marks], axis=2), total, ("sum",), sequence=True)


# fmt: off
_TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
# fmt: on
_ROWS_A_CLASS, _ROWS_TO_TRAIN = 500, 4000
_DILATED, _STEPS = 72, 40  # samples of a signal before and after the last interpolation
_PADDING, _SHIFTS = (36, 60), 48


def mnist_1d() -> Raw:
    """MNIST-1D (Greydanus & Kobak, ICML 2024): 4000 + 1000 signals [40, 1], 10 classes, as published.

    Uses the same steps and random draws as `make_dataset()` of the package mnist1d 0.0.2 with its default
    arguments (seed 42); NumPy guarantees the streams of `RandomState` permanently (NEP 19). The C library's
    logarithm and exponential function differ in their last bits between machines, so the values are rounded
    to float32.
    """
    draw = np.random.RandomState(42)
    templates = np.array(_TEMPLATES)
    templates -= templates.mean(1, keepdims=True)
    templates /= templates.std(1, keepdims=True)
    templates = (templates - templates[:, :1]) / 6.0
    signals = np.stack([_signal(row, draw) for row in templates for _ in range(_ROWS_A_CLASS)])
    labels = np.repeat(np.arange(len(templates)), _ROWS_A_CLASS)
    order = draw.permutation(len(labels))
    signals = signals[order]
    signals = ((signals - signals.mean()) / signals.std()).astype(np.float32)
    names = tuple(str(digit) for digit in range(len(templates)))
    return classes(signals[:, :, None], labels[order], names, test_from=_ROWS_TO_TRAIN, sequence=True)


def _signal(template: NDArray[np.float64], draw: np.random.RandomState) -> NDArray[np.float64]:
    """Return a template padded, dilated, scaled, shifted, with noise, sheared and sampled at 40 points."""
    low, high = _PADDING
    padding = low + int(draw.rand() * (high - low + 1))
    x = _resample(np.concatenate([template + 1e-8, np.zeros(padding)]), _DILATED)
    x *= 1 + 0.4 * (draw.rand() - 0.5)
    x = np.roll(x, draw.choice(_SHIFTS))
    x = np.where(x != 0, x, _blurred(0.25 * draw.randn(_DILATED)))
    x = x + 2e-2 * draw.randn(_DILATED)
    shear = 0.75 * (draw.rand() - 0.5)
    return _resample(x - shear * np.linspace(-0.5, 0.5, _DILATED), _STEPS)


def _resample(x: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(x)), x)


def _blurred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a Gaussian filter of deviation 2, cut off at 8, reflected at the ends, like `scipy.ndimage`."""
    radius = 8
    kernel = np.exp(-0.125 * np.arange(-radius, radius + 1) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(x, radius, mode="symmetric")
    index = np.arange(len(x))
    total: NDArray[np.float64] = padded[index + radius] * kernel[radius]
    for k in range(radius):
        total += (padded[index + k] + padded[index + 2 * radius - k]) * kernel[k]
    return total
