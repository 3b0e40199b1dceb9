"""Metrics against scikit-learn, losses against exact arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as oracle

from harness.core.data.dataset import Task
from harness.core.training import losses, metrics
from harness.core.validation import ConfigError

TWO = Task("classification", 2, ("no", "yes"))
FIVE = Task("classification", 5, ("a", "b", "c", "d", "e"))
NUMBERS = Task("regression", 3, ("u", "v", "w"))
ZERO, ONE = np.zeros(1), np.ones(1)


def _classification(truth: np.ndarray, predicted: np.ndarray) -> list[float]:
    options = {"average": "macro", "zero_division": 0}
    return [
        oracle.accuracy_score(truth, predicted),
        oracle.precision_score(truth, predicted, **options),
        oracle.recall_score(truth, predicted, **options),
        oracle.f1_score(truth, predicted, **options),
    ]


@pytest.mark.parametrize("never", [None, 3], ids=["all predicted", "class 3 never predicted"])
def test_class_metrics_agree_with_scikit_learn(never: int | None) -> None:
    """Catches: rows and columns exchanged, micro for macro averages, 0/0 for a class never predicted."""
    random = np.random.default_rng(1)
    truth = random.integers(0, 5, 300)
    outputs = random.normal(size=(300, 5)).astype(np.float32) + 1.5 * np.eye(5, dtype=np.float32)[truth]
    if never is not None:
        outputs[:, never] = -20.0
    predicted = outputs.argmax(axis=1)
    values = metrics.evaluate(FIVE, "cross_entropy", outputs, truth, ZERO, ONE)
    np.testing.assert_allclose([values[k] for k in metrics.CLASSIFICATION], _classification(truth, predicted))
    np.testing.assert_array_equal(
        metrics.confusion_matrix(FIVE, "cross_entropy", outputs, truth),
        oracle.confusion_matrix(truth, predicted, labels=range(5)),
    )
    assert values["loss"] == pytest.approx(oracle.log_loss(truth, _softmax(outputs), labels=range(5)))


def test_a_class_that_a_split_lacks_does_not_lower_a_perfect_score() -> None:
    """Catches: averaging over classes that a small validation part doesn't have."""
    truth = np.array([0, 1, 1, 4])
    values = metrics.evaluate(FIVE, "cross_entropy", 9.0 * np.eye(5)[truth], truth, ZERO, ONE)
    assert [values[k] for k in metrics.CLASSIFICATION] == [1.0, 1.0, 1.0, 1.0]


def test_binary_metrics_agree_with_scikit_learn() -> None:
    """Catches: a threshold of 0.5 put on logits, or the single logit taken for class 0."""
    random = np.random.default_rng(2)
    truth = random.integers(0, 2, 200)
    outputs = random.normal(size=(200, 1)) + truth[:, None] * 0.8
    values = metrics.evaluate(TWO, "binary_cross_entropy", outputs, truth, ZERO, ONE)
    predicted = (outputs[:, 0] > 0).astype(int)
    np.testing.assert_allclose([values[k] for k in metrics.CLASSIFICATION], _classification(truth, predicted))
    assert values["loss"] == pytest.approx(oracle.log_loss(truth, 1 / (1 + np.exp(-outputs[:, 0]))))


def test_regression_metrics_are_in_original_units_and_agree_with_scikit_learn() -> None:
    """Catches: errors reported in standardised units, or R² over all targets at once."""
    random = np.random.default_rng(3)
    mean, std = np.array([10.0, -5.0, 0.0]), np.array([2.0, 30.0, 0.1])
    targets = random.normal(size=(80, 3))
    outputs = targets + 0.3 * random.normal(size=(80, 3))
    values = metrics.evaluate(NUMBERS, "mse", outputs, targets, mean, std)
    true, predicted = targets * std + mean, outputs * std + mean
    assert values["mse"] == pytest.approx(oracle.mean_squared_error(true, predicted))
    assert values["mae"] == pytest.approx(oracle.mean_absolute_error(true, predicted))
    assert values["r2"] == pytest.approx(oracle.r2_score(true, predicted))
    assert values["loss"] == pytest.approx(oracle.mean_squared_error(targets, outputs))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_give_nan(bad: float) -> None:
    """Catches: a diverged run that crashes its evaluation, or is credited with the accuracy of class 0."""
    outputs = np.zeros((6, 5))
    outputs[2, 1] = bad
    truth = np.array([0, 1, 2, 3, 4, 0])
    values = metrics.evaluate(FIVE, "cross_entropy", outputs, truth, ZERO, ONE)
    assert all(math.isnan(figure) for figure in values.values())
    assert metrics.confusion_matrix(FIVE, "cross_entropy", outputs, truth).sum() == 5
    values = metrics.evaluate(NUMBERS, "mse", outputs[:, :3], np.zeros((6, 3)), np.zeros(3), np.ones(3))
    assert all(math.isnan(figure) for figure in values.values())


@pytest.mark.filterwarnings("error")
def test_r2_of_a_target_that_never_varies_is_nan() -> None:
    """Catches: a division by zero that is reported as a perfect or infinitely bad fit."""
    task = Task("regression", 1, ("y",))
    truth = np.full((7, 1), 0.1)
    for outputs in (truth, truth + 1.0):
        assert math.isnan(metrics.evaluate(task, "mse", outputs, truth, ZERO, ONE)["r2"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_are_exact_at_extreme_logits(dtype: type) -> None:
    """Catches: exp() that overflows, log(0), or clipping as Keras does on probabilities."""
    logits = np.array([[1000.0], [-1000.0], [1000.0], [0.0]], dtype=dtype)
    truth = np.array([1, 0, 0, 1])
    assert losses.value("binary_cross_entropy", logits, truth) == pytest.approx((1000 + math.log(2)) / 4)
    logits = np.array([[1000.0, -1000.0], [-1000.0, 1000.0], [3.0, 3.0]], dtype=dtype)
    truth = np.array([0, 0, 1])
    assert losses.value("cross_entropy", logits, truth) == pytest.approx((2000 + math.log(2)) / 3)


def test_losses_by_their_formulas() -> None:
    """Catches: a wrong sign, a sum for a mean, or a factor of a half in the squared error."""
    outputs = np.array([[0.5, -1.0], [2.0, 0.0]])
    assert losses.value("mse", outputs, np.zeros((2, 2))) == pytest.approx((0.25 + 1 + 4) / 4)
    p = _softmax(outputs)
    expected = -(math.log(p[0, 1]) + math.log(p[1, 0])) / 2
    assert losses.value("cross_entropy", outputs, np.array([1, 0])) == pytest.approx(expected, abs=1e-15)
    # with two classes both losses are one: the logit is the difference
    logit = outputs[:, 1:] - outputs[:, :1]
    assert losses.value("binary_cross_entropy", logit, np.array([1, 0])) == pytest.approx(expected, abs=1e-15)


def test_losses_are_computed_in_the_precision_of_the_outputs() -> None:
    """Catches: a reference that computes float32 runs in float64 and so is not what the framework does."""
    outputs, truth = np.full((3, 2), 0.1, np.float32), np.zeros((3, 2))
    assert losses.value("mse", outputs, truth) == float(np.float32(0.1) ** 2)


def test_each_task_has_a_loss_and_a_number_of_outputs() -> None:
    """Catches: two outputs under the binary loss, or one under the categorical one."""
    assert [losses.default_loss(t) for t in (TWO, FIVE, NUMBERS)] == [
        "binary_cross_entropy",
        "cross_entropy",
        "mse",
    ]
    assert losses.outputs(TWO, "binary_cross_entropy") == 1
    assert losses.outputs(TWO, "cross_entropy") == 2
    assert losses.outputs(FIVE, "cross_entropy") == 5
    assert losses.outputs(NUMBERS, "mse") == 3


@pytest.mark.parametrize(
    ("task", "loss", "message"),
    [
        (FIVE, "binary_cross_entropy", "classification with 2 classes; the task is classification with 5"),
        (TWO, "mse", "mse is for regression"),
        (NUMBERS, "cross_entropy", "the task is regression with 3 targets"),
        (FIVE, "crossentropy", "did you mean 'cross_entropy'"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused_in_words(task: Task, loss: str, message: str) -> None:
    """Catches: a pair of task and loss that would train without error and mean nothing."""
    with pytest.raises(ConfigError, match=message) as caught:
        losses.outputs(task, loss)
    assert losses.default_loss(task) in caught.value.mistakes[0].allowed


def _softmax(outputs: np.ndarray) -> np.ndarray:
    powers = np.exp(outputs.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)
