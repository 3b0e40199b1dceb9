"""Predictions of any framework -> metrics, by one function for all.

Frameworks define their own metrics differently (averages of batch means, thresholds, running states), so none
of them is asked: each hands over its raw outputs for a whole split, and the figures are made here in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.data.loaders import Task
from harness.core.training import losses

CLASSIFICATION = ("accuracy", "precision", "recall", "f1")
REGRESSION = ("mse", "mae", "r2")


def evaluate(
    task: Task,
    loss: str,
    outputs: NDArray[Any],
    targets: NDArray[Any],
    target_mean: NDArray[np.float64],
    target_std: NDArray[np.float64],
) -> dict[str, float]:
    """The metrics of one split.

    outputs: raw network outputs [rows, n]. targets: class numbers int64 [rows], or float [rows, targets] in
    training units. Returned: `loss` in training units, and `accuracy precision recall f1` (the last three
    averaged over classes) or `mse mae r2` in the original units, `y * target_std + target_mean`; of a
    reconstruction in training units, which are those of its input.
    Where an output is not finite, every metric is nan.
    """
    outputs = outputs.astype(np.float64)
    keys = CLASSIFICATION if task.kind == "classification" else REGRESSION
    if not np.isfinite(outputs).all():
        return dict.fromkeys(("loss", *keys), float("nan"))
    if task.kind == "classification":
        figures = _classification(confusion_matrix(task, loss, outputs, targets))
    elif task.kind == "reconstruction":
        figures = _reconstruction(outputs, targets)
    else:
        figures = _regression(outputs * target_std + target_mean, targets * target_std + target_mean)
    return {"loss": losses.value(loss, outputs, targets), **dict(zip(keys, figures, strict=True))}


def confusion_matrix(
    task: Task, loss: str, outputs: NDArray[Any], targets: NDArray[Any]
) -> NDArray[np.int64]:
    """How often class i (row) was taken for class j (column): int64 [classes, classes].

    Rows whose outputs are not finite predict nothing and are not counted.
    """
    usable = np.isfinite(outputs).all(axis=1)
    scores, truth = outputs[usable], targets[usable].astype(np.int64)
    binary = loss == "binary_cross_entropy"  # one logit: positive means class 1
    predicted = (scores[:, 0] > 0).astype(np.int64) if binary else scores.argmax(axis=1)
    cells = np.bincount(truth * task.outputs + predicted, minlength=task.outputs**2)
    return cells.reshape(task.outputs, task.outputs).astype(np.int64)


def _classification(confusion: NDArray[np.int64]) -> tuple[float, ...]:
    """Accuracy and macro precision, recall, F1, over the classes that are true or predicted somewhere.

    A class that was never predicted has precision 0; one that never occurs has recall 0.
    """
    right = confusion.diagonal().astype(np.float64)
    predicted, true = confusion.sum(axis=0), confusion.sum(axis=1)
    seen = (predicted + true) > 0
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(true, 1)
    f1 = 2.0 * right / np.maximum(predicted + true, 1)
    macro = (float(figure[seen].mean()) for figure in (precision, recall, f1))
    return (float(right.sum() / confusion.sum()), *macro)


def _regression(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[float, ...]:
    """MSE and MAE over all values; R² per target, then averaged (nan for a target that never varies)."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        error = predicted - true
        unexplained = np.square(error).sum(axis=0)
        total = np.square(true - true.mean(axis=0)).sum(axis=0)
        constant = true.max(axis=0) == true.min(axis=0)
        r2 = np.where(constant, np.nan, 1.0 - unexplained / total)
        return float(np.square(error).mean()), float(np.abs(error).mean()), float(r2.mean())


def _reconstruction(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[float, ...]:
    """MSE and MAE over all values; R² as the part of the whole variance that is explained.

    That is how principal components are judged. A mean of one R² a pixel would be undefined for images, in
    whose corners nothing varies. It is nan where nothing varies at all.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        error = predicted - true
        unexplained, total = np.square(error).sum(), np.square(true - true.mean(axis=0)).sum()
        varies = bool((true.max(axis=0) > true.min(axis=0)).any())
        r2 = 1.0 - float(unexplained / total) if varies else float("nan")
        return float(np.square(error).mean()), float(np.abs(error).mean()), r2
