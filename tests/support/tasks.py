"""Small tasks for the contract tests, and the results of the NumPy reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.core.network import initialisers
from harness.core.training.batches import batch_order
from harness.core.training.optimizers import Rule
from harness.core.validation import parse
from tests.support import adapter_cases, numpy_training

BOUND = 1e-10
ROWS, STEPS, BATCH, EPOCHS = 26, 6, 4, 4

MLP: list[dict[str, Any]] = [
    {"kind": "dense", "units": 6},
    {"kind": "activation", "function": "tanh"},
    {"kind": "output"},
]
WITH_DROPOUT = [*MLP[:2], {"kind": "dropout", "rate": 0.4}, MLP[2]]
RULES: dict[str, dict[str, float]] = {
    "sgd": {"learning_rate": 0.1, "weight_decay": 0.02},
    "momentum": {"learning_rate": 0.05, "momentum": 0.8, "weight_decay": 0.02},
    "nesterov": {"learning_rate": 0.05, "momentum": 0.8, "weight_decay": 0.02},
    "adam": {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-6},
    "adamw": {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-6, "weight_decay": 0.1},
    "rmsprop": {"learning_rate": 0.01, "rho": 0.8, "epsilon": 1e-5},
}

Task = dict[str, Any]
Run = dict[str, Any]


def shared(name: str) -> dict[str, Any]:
    """A rule in evenbench's shared implementation, with numbers that are no framework's defaults."""
    return {"name": name, "impl": "shared"} | RULES[name]


def make_task(execution: str, **other: Any) -> Task:
    """A small task with more rows than an epoch uses; `other` replaces parts of it. With `padded`, rows are
    sequences of unequal length; with `vocabulary`, token ids."""
    task = {"layers": MLP, "in_shape": [5], "outputs": 3, "loss": "cross_entropy", "precision": "float64"}
    task |= {"execution": execution, "batches": [STEPS, BATCH]} | other
    random = np.random.default_rng(1)
    rows = {"train": ROWS, "val": 10, "test": 7}
    task["x"] = {split: random.normal(size=(n, *task["in_shape"])) for split, n in rows.items()}
    if "vocabulary" in task:
        shapes = {split: x.shape for split, x in task["x"].items()}
        task["x"] = {s: random.integers(1, task["vocabulary"], n) * 1.0 for s, n in shapes.items()}
    if task.get("padded"):
        steps = task["in_shape"][0]
        # every length, from a single step to no padding
        task["lengths"] = {split: 1 + np.arange(n) % steps for split, n in rows.items()}
        for split, x in task["x"].items():
            x[np.arange(steps) >= task["lengths"][split][:, None]] = 0.0
    if task["loss"] == "mse":
        task["y"] = {split: random.normal(size=(n, task["outputs"])) for split, n in rows.items()}
    else:
        task["y"] = {split: random.integers(0, max(2, task["outputs"]), n) for split, n in rows.items()}
    return task


def make_run(task: Task, rate: float, seed: int = 0, **other: Any) -> Run:
    """A run of the task over all epochs, with a learning rate that changes at each step."""
    weights = initialisers.initialise(adapter_cases.network(task).params(), 3, task["precision"])
    orders = np.stack([batch_order(seed, epoch, ROWS, BATCH) for epoch in range(EPOCHS)])
    rates = rate * np.linspace(1.0, 0.3, EPOCHS * STEPS).reshape(EPOCHS, STEPS)
    return {"weights": weights, "orders": orders, "rates": rates, "seed": seed} | other


def expected(task: Task, rule: dict[str, Any], run: Run) -> tuple[Any, dict[str, Any]]:
    """Losses and final weights of the reference."""
    real = parse(Rule, rule | run.get("numbers", {}))  # type: ignore[arg-type]
    x, y = task["x"]["train"], task["y"]["train"]
    arguments = (adapter_cases.network(task), task["loss"], real, run["weights"], x, y)
    return numpy_training.train(*arguments, run["orders"], run["rates"])[:2]


def losses_agree(losses: list[Any], reference: Any, bound: float = BOUND) -> bool:
    """Whether each epoch's losses are the reference's, or their mean if an execution reports only that."""

    def agree(epoch: Any, expected: Any) -> bool:
        if len(epoch) == 1:
            expected = expected.mean(keepdims=True)
        return bool(epoch.shape == expected.shape and np.abs(epoch - expected).max() <= bound)

    return len(losses) == len(reference) and all(map(agree, losses, reference))


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a.dtype == b.dtype and np.array_equal(a, b))
