"""The losses by name, with a NumPy reference of each.

All losses are computed from raw network outputs (logits): a sigmoid or softmax in the network followed by a
logarithm loses digits and, in frameworks that clip, changes the gradient. The adapters' native losses are
checked against the reference, and the evaluation reports the reference, so that all results use one formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.data.loaders import Task
from harness.core.validation import ConfigError, Mistake, nearest

Array = NDArray[Any]
Floats = NDArray[np.floating[Any]]


def _mse(outputs: Floats, targets: Array) -> Floats:
    return np.square(outputs - targets.astype(outputs.dtype))


def _binary_cross_entropy(outputs: Floats, targets: Array) -> Floats:
    logits, truth = outputs[:, 0], targets.astype(outputs.dtype)
    # softplus(z) - y z, where softplus(z) = log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|))
    return np.maximum(logits, 0) - truth * logits + np.log1p(np.exp(-np.abs(logits)))


def _cross_entropy(outputs: Floats, targets: Array) -> Floats:
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    log_sum: Floats = np.log(np.exp(shifted).sum(axis=1))
    of_truth: Floats = np.take_along_axis(shifted, targets[:, None], axis=1)[:, 0]
    return log_sum - of_truth


@dataclass(frozen=True)
class _Loss:
    elements: Callable[[Floats, Array], Floats]
    suits: Callable[[Task], bool]
    outputs: Callable[[Task], int]
    needs: str


_LOSSES = {
    "mse": _Loss(
        _mse, lambda t: t.kind != "classification", lambda t: t.outputs, "regression and reconstruction"
    ),
    "binary_cross_entropy": _Loss(
        _binary_cross_entropy,
        lambda t: t.kind == "classification" and t.outputs == 2,
        lambda t: 1,
        "classification with 2 classes",
    ),
    "cross_entropy": _Loss(
        _cross_entropy, lambda t: t.kind == "classification", lambda t: t.outputs, "classification"
    ),
}

NAMES = tuple(_LOSSES)
KEY = "train.loss"


def default_loss(task: Task) -> str:
    """Return the default loss of a task."""
    if task.kind != "classification":
        return "mse"
    return "binary_cross_entropy" if task.outputs == 2 else "cross_entropy"


def check(task: Task, loss: str) -> list[Mistake]:
    """Return the mistakes of using this loss for this task."""
    suitable = [name for name, entry in _LOSSES.items() if entry.suits(task)]
    if loss in suitable:
        return []
    if loss not in _LOSSES:
        return [Mistake(KEY, f"{loss!r} is not known", ", ".join(suitable), nearest(loss, NAMES))]
    unit = "classes" if task.kind == "classification" else "targets"
    problem = f"{loss} is for {_LOSSES[loss].needs}; the task is {task.kind} with {task.outputs} {unit}"
    return [Mistake(KEY, problem, ", ".join(suitable))]


def outputs(task: Task, loss: str) -> int:
    """Return the number of network outputs per row; raises ConfigError if the loss does not suit the task."""
    mistakes = check(task, loss)
    if mistakes:
        raise ConfigError(mistakes)
    return _LOSSES[loss].outputs(task)


def value(loss: str, outputs: Floats, targets: Array) -> float:
    """Compute the mean loss over all rows (and targets), in the dtype of `outputs`.

    outputs: raw network outputs, floating point [rows, n]. targets: class numbers int64 [rows], or
    [rows, targets] for mse. Outputs that are not finite give nan or inf, never an error.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return float(_LOSSES[loss].elements(outputs, targets).mean())
