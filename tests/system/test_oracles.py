"""Trainings with a known outcome, by the real command, in every framework.

The contract suite shows that frameworks agree; these tests show that they are correct. A theorem gives the
optimum of a linear autoencoder, and the literature tells which recurrent networks can add two numbers that
are far apart. One sweep per task serves all frameworks; each framework has its own test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.data.dataset import DataConfig, load
from tests.support.adapter_process import frameworks
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(600)

TIMEOUT_S = 580  # a minute on an idle machine, but tests run in parallel
FRAMEWORKS = frameworks()
CODES = (2, 16)
PCA_TOLERANCE = 0.02
# Always predicting 1 has an MSE of 0.167, the variance of the sum of two numbers.
LEARNT, NOT_LEARNT = 0.01, 0.1

Ends = Mapping[tuple[str, str], float]
"""The test MSE by framework and by the varied value."""


def sweep(folder: Path, varied: str, *arguments: str) -> Ends:
    """Train in every installed framework; `varied` is the key below `model` that differs between runs."""
    installed = [name for name, framework in FRAMEWORKS.items() if not framework.missing()]
    command = [sys.executable, "-m", "harness", "-m", f"framework={','.join(installed)}", "certify=off"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=env, text=True, capture_output=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    ends: dict[tuple[str, str], float] = {}
    for path in (folder / "results" / "runs").glob("*/result.json"):
        config: dict[str, Any] = json.loads((path.parent / "job.json").read_text())["config"]
        mse = json.loads(path.read_text())["metrics"]["test/loss"]
        ends[config["framework"]["name"], str(config["model"][varied])] = mse
    return ends


def end_of(ends: Ends, framework: str, value: str) -> float:
    """A framework's final MSE; skips the test if it is not installed."""
    missing = FRAMEWORKS[framework].missing()
    if missing:
        pytest.skip(f"{framework} needs {missing}, which is not installed")
    return ends[framework, value]


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """Linear autoencoders of the unscaled digits, with pixels 0 ... 16."""
    network = ("model=autoencoder", "model.units=[]", "model.mirror=[]", "model.activation=linear")
    training = ("train.epochs=80", "optimizer.learning_rate=0.1", "schedule=cosine")
    codes = f"model.code={','.join(map(str, CODES))}"
    folder = tmp_path_factory.mktemp("linear")
    return sweep(folder, "code", *network, codes, "data=digits", "data.standardise=false", *training)


@pytest.fixture(scope="module")
def adding(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """Recurrent networks of 16 units on the adding problem over 50 steps."""
    training = ("train.epochs=3", "train.batch_size=50", "optimizer.learning_rate=0.02")
    task = ("model=rnn,lstm,gru", "model.units=16", "data=adding_problem", "data.options.steps=50")
    return sweep(tmp_path_factory.mktemp("adding"), "name", *task, *training)


def pca_mse(components: int) -> float:
    """Mean squared error per pixel on the test rows of a PCA fitted on the training rows."""
    x = {split: rows.reshape(len(rows), -1) for split, rows in _digits().items()}
    mean = x["train"].mean(axis=0)
    directions = np.linalg.svd(x["train"] - mean, full_matrices=False)[2][:components]
    centred = x["test"] - mean
    return float(np.mean((centred - centred @ directions.T @ directions) ** 2))


def _digits() -> Mapping[str, np.ndarray]:
    return load(DataConfig("digits", standardise=False)).x


def test_pca_of_the_digits_has_the_known_error() -> None:
    """Catches: other rows, another split or another scale of pixels than in the known figures."""
    assert [pca_mse(components) / 16**2 for components in CODES] == pytest.approx([0.0532, 0.0116], abs=5e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("code", CODES)
def test_a_linear_autoencoder_is_pca(code: int, framework: str, linear: Ends) -> None:
    """Catches: an extra layer, activation or scale, missing biases (which centre the pixels), or targets
    other than the input. Baldi & Hornik 1989: the best linear autoencoder projects on the first principal
    components."""
    assert end_of(linear, framework, str(code)) == pytest.approx(pca_mse(code), rel=PCA_TOLERANCE)


@pytest.mark.exhaustive
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("model", ["lstm", "gru"])
def test_gates_remember_over_fifty_steps(model: str, framework: str, adding: Ends) -> None:
    """Catches: a cell that forgets: gates in another order, a forget bias of 0, a state that is not passed to
    the next step (Hochreiter & Schmidhuber 1997, experiment 4)."""
    assert end_of(adding, framework, model) < LEARNT


@pytest.mark.exhaustive
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_tanh_rnn_does_not(framework: str, adding: Ends) -> None:
    """Catches: a task that needs no memory, or an `rnn` that is another layer."""
    assert end_of(adding, framework, "rnn") > NOT_LEARNT
