"""The main promise, on real data: the same network trains alike in every framework.

The contract suite compares each framework with NumPy on small tasks. These tests train a typical model on
typical data, directly in each framework and with the real command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.core.data.dataset import DataConfig, load
from harness.core.network import Input, ModelSpec, initialisers
from harness.core.training import optimizers, weights
from harness.core.training.batches import batch_order
from harness.core.validation import members
from tests.support.adapter_process import AdapterProcess, Adapters
from tests.support.paths import ROOT

BOUND = 1e-10
STEPS, BATCH = 20, 32
FNN: list[dict[str, Any]] = [
    {"kind": "flatten"},
    {"kind": "dense", "units": 64},
    {"kind": "activation", "function": "relu"},
    {"kind": "dense", "units": 32},
    {"kind": "activation", "function": "relu"},
    {"kind": "output"},
]
OTHERS = (("keras", "epoch"), ("keras_jax", "epoch"), ("keras_torch", "eager"))


@dataclass(frozen=True)
class Trained:
    """The loss of each step, and the weights after the last."""

    losses: np.ndarray
    weights: dict[str, np.ndarray]


def train(process: AdapterProcess, execution: str, name: str, impl: str) -> Trained:
    """Train the FNN on digits for twenty steps in float64."""
    digits = load(DataConfig("digits"))
    rule = {"name": name, "impl": impl, "learning_rate": 0.01}
    task = {"layers": FNN, "in_shape": [8, 8], "outputs": 10, "loss": "cross_entropy", "precision": "float64"}
    task |= {"execution": execution, "batches": [STEPS, BATCH], "x": digits.x, "y": digits.y}
    start = _initial()
    order = batch_order(0, 1, digits.rows("train"), BATCH)[None, :STEPS]
    rates = np.full((1, STEPS), 0.01)
    runs = [{"weights": start, "orders": order, "rates": rates}]
    (result,) = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=runs)
    return Trained(np.concatenate(result["losses"]), result["weights"])


def _initial() -> dict[str, np.ndarray]:
    return initialisers.initialise(ModelSpec.parse(FNN).resolve(Input((8, 8)), 10).params(), 0, "float64")


def deviation(a: Trained, b: Trained) -> float:
    """The largest difference in any step's loss or any weight."""
    return max(float(np.abs(a.losses - b.losses).max()), weights.compare(a.weights, b.weights).largest)


@pytest.mark.parametrize("framework, execution", OTHERS)
@pytest.mark.parametrize("name", list(members(optimizers.Rule)))
def test_every_step_and_weight_under_the_shared_rule(
    name: str, framework: str, execution: str, adapters: Adapters
) -> None:
    """Catches: a framework that trains a different network: another layout, loss, batch or rule."""
    reference = train(adapters("torch", "float64"), "eager", name, "shared")
    other = train(adapters(framework, "float64"), execution, name, "shared")
    assert other.losses.shape == (STEPS,)
    assert deviation(reference, other) < BOUND
    assert reference.losses[-1] < reference.losses[0]  # frameworks that learn nothing would agree too


@pytest.mark.parametrize("framework, execution", OTHERS)
@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_native_descent(name: str, framework: str, execution: str, adapters: Adapters) -> None:
    """Catches: a framework's own SGD that gets other numbers than the rule (momentum, weight decay)."""
    reference = train(adapters("torch", "float64"), "eager", name, "native")
    assert deviation(reference, train(adapters(framework, "float64"), execution, name, "native")) < BOUND


def evenbench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a folder."""
    command = [sys.executable, "-m", "harness", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=280)


@pytest.mark.exhaustive
def test_accuracy_in_float32(tmp_path: Path) -> None:
    """Catches: a framework whose float32 training ends with another accuracy."""
    sweep = ("-m", "framework=torch,keras,keras_jax", "seed=range(5)", "train.epochs=20", "data=digits")
    # tests/adapters/test_certificates.py tests the certificates
    done = evenbench(tmp_path, *sweep, "certify=off")
    assert done.returncode == 0, done.stderr
    accuracies: dict[str, list[float]] = {}
    for path in sorted((tmp_path / "results/runs").glob("*/result.json")):
        job = json.loads((path.parent / "job.json").read_text())["config"]
        accuracy = json.loads(path.read_text())["metrics"]["test/accuracy"]
        accuracies.setdefault(job["framework"]["name"], []).append(accuracy)
    assert {name: len(values) for name, values in accuracies.items()} == dict.fromkeys(accuracies, 5)
    assert len(accuracies) == 3
    means = {name: float(np.mean(values)) for name, values in accuracies.items()}
    spread = max(float(np.std(values, ddof=1)) for values in accuracies.values())
    assert min(means.values()) >= 0.95
    assert max(means.values()) - min(means.values()) <= spread


def test_a_worker_in_another_interpreter(tmp_path: Path) -> None:
    """Catches: a worker that needs the shell's packages (evenbench, Hydra, MLflow) in its interpreter."""
    other = tmp_path / "other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", other], check=True)
    (site,) = (other / "lib").glob("python*/site-packages")
    packages = Path(torch.__file__).parents[1]
    needed = (
        "numpy",
        "numpy.libs",
        "torch",
        "torchgen",
        "functorch",
        "typing_extensions.py",
        "sympy",
        "mpmath",
    )
    needed += ("filelock", "networkx", "jinja2", "markupsafe", "fsspec")
    needed += tuple(path.name for path in packages.glob("torch-*.dist-info"))
    for name in needed:
        if (packages / name).exists():
            (site / name).symlink_to(packages / name)
    python = str(other / "bin" / "python")
    done = evenbench(tmp_path, f"framework.python={python}", "data=iris", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    without = (
        "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, ['mlflow', 'hydra', 'sklearn'])))"
    )
    assert subprocess.run([python, "-c", without]).returncode == 0
