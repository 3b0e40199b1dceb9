"""Compute metrics from the raw outputs of any framework.

Frameworks define metrics differently (averages of batch means, thresholds, running states), so their own are
not used: an adapter returns the raw outputs for a whole split, and this module computes the metrics in
float64.
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
    """Compute the metrics of one split.

    outputs: raw network outputs [rows, n]. targets: class numbers int64 [rows], or float [rows, targets] in
    training units. Returns `loss` in training units, and `accuracy precision recall f1` (the last three
    averaged over classes) or `mse mae r2` in the original units, `y * target_std + target_mean`; for a
    reconstruction in training units, which are those of its input.
    If any output is not finite, all metrics are nan.
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
    """Count how often class i (row) was predicted as class j (column): int64 [classes, classes].

    Samples whose outputs are not finite are not counted.
    """
    usable = np.isfinite(outputs).all(axis=1)
    scores, truth = outputs[usable], targets[usable].astype(np.int64)
    binary = loss == "binary_cross_entropy"  # one logit: positive means class 1
    predicted = (scores[:, 0] > 0).astype(np.int64) if binary else scores.argmax(axis=1)
    cells = np.bincount(truth * task.outputs + predicted, minlength=task.outputs**2)
    return cells.reshape(task.outputs, task.outputs).astype(np.int64)


def _classification(confusion: NDArray[np.int64]) -> tuple[float, ...]:
    """Return accuracy and macro precision, recall, F1, over the classes that occur or are predicted.

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
    """Return MSE and MAE over all values, and R² averaged over targets (nan if a target is constant)."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        error = predicted - true
        unexplained = np.square(error).sum(axis=0)
        total = np.square(true - true.mean(axis=0)).sum(axis=0)
        constant = true.max(axis=0) == true.min(axis=0)
        r2 = np.where(constant, np.nan, 1.0 - unexplained / total)
        return float(np.square(error).mean()), float(np.abs(error).mean()), float(r2.mean())


def _reconstruction(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[float, ...]:
    """Return MSE and MAE over all values, and R² as the explained share of the total variance.

    Principal components are rated in the same way. A mean of one R² per pixel would be undefined for images
    with constant corners. R² is nan if no value varies.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        error = predicted - true
        unexplained, total = np.square(error).sum(), np.square(true - true.mean(axis=0)).sum()
        varies = bool((true.max(axis=0) > true.min(axis=0)).any())
        r2 = 1.0 - float(unexplained / total) if varies else float("nan")
        return float(np.square(error).mean()), float(np.abs(error).mean()), r2
