"""The networks of the architectures page: every framework computes and trains them like NumPy.

`tests/project/test_readme.py` runs the page's commands, `certify` among them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from harness.core.training import losses
from tests.support import adapter_cases
from tests.support.adapter_process import Adapters, frameworks
from tests.support.networks import random_weights
from tests.support.numpy_forward import forward
from tests.support.pages import blocks, page_named
from tests.support.tasks import BATCH, Task, make_task, shared

EXACT = 1e-10
FIRST_ROWS = np.arange(BATCH, dtype=np.int32).reshape(1, 1, BATCH)
SHAPES = {"small_resnet": [8, 8], "cnn_lstm": [12, 3]}


def layers(name: str) -> list[dict[str, Any]]:
    """The layer tree of a model on the page, with its hyperparameters and without dropout."""
    page = page_named("architectures.md")
    texts = [block.text for block in blocks(page) if block.language == "yaml"]
    (text,) = [text for text in texts if f"\nname: {name}\n" in text]
    config = OmegaConf.create({"model": OmegaConf.create(text)})
    config.model.dropout = 0.0
    plain: Any = OmegaConf.to_container(config.model, resolve=True)
    return plain["layers"]


@pytest.mark.parametrize("framework", frameworks())
@pytest.mark.parametrize("name", SHAPES)
def test_every_framework_computes_and_trains_it(name: str, framework: str, adapters: Adapters) -> None:
    """Catches: an architecture in the docs that a framework refuses or builds differently."""
    executions = frameworks()[framework].executions
    execution = "eager" if "eager" in executions else executions[0]
    task: Task = make_task(execution, layers=layers(name), in_shape=SHAPES[name], batches=[1, BATCH])
    network = adapter_cases.network(task)
    weights = random_weights(network)
    run = {"weights": weights, "orders": FIRST_ROWS, "rates": np.full((1, 1), 0.1)}
    rule = shared("sgd") | {"weight_decay": 0.0}
    (result,) = adapters(framework, "float64").call(
        "tests.support.adapter_cases:train", task=task, rule=rule, runs=[run]
    )
    for moment, of_weights in ("before", weights), ("after", result["weights"]):
        outputs = result[moment]["test"] if moment == "before" else result[moment]
        expected, _ = forward(network, of_weights, task["x"]["test"])
        assert np.abs(outputs - expected).max() <= EXACT, moment
    rows = FIRST_ROWS[0, 0]
    outputs, _ = forward(network, weights, task["x"]["train"][rows], training=True)
    loss = losses.value(task["loss"], outputs, task["y"]["train"][rows])
    assert abs(float(result["losses"][0][0]) - loss) <= EXACT
