"""A small network for each layer kind and option, and random weights for all their parameters.

Activations are smooth, so that gradients can be checked against finite differences of the loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.core.network import Network
from tests.support import adapter_cases
from tests.support.tasks import BATCH, Task, make_task

TANH = {"kind": "activation", "function": "tanh"}
FLAT = {"kind": "flatten"}
OUTPUT = {"kind": "output"}
IMAGE, SEQUENCE = [6, 5, 2], [7, 4]
SHORT = [5, 4]
"""Shape for recurrent kinds: some executions unroll the steps, so compile time is proportional to them."""


def _image(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"in_shape": IMAGE, "layers": [*layers, FLAT, OUTPUT]}


def _sequence(*layers: dict[str, Any], shape: list[int] = SEQUENCE) -> dict[str, Any]:
    return {"in_shape": shape, "layers": [*layers, FLAT, OUTPUT]}


def _padded(*layers: dict[str, Any], shape: list[int] = SEQUENCE) -> dict[str, Any]:
    return {"in_shape": shape, "padded": True, "layers": [*layers, OUTPUT]}


def _short(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A network on few steps, see `SHORT`."""
    return {"in_shape": [4, 4], "layers": [*layers, OUTPUT], **more}


def _cells() -> dict[str, dict[str, Any]]:
    """Every recurrent kind: one or two directions, last state or all states, with and without padding."""
    cells = {}
    # reads the sequence with a layer that distinguishes its steps, unlike a mean
    reader = {"kind": "rnn", "units": 2, "returns": "last"}
    for kind in ("rnn", "lstm", "gru"):
        for bidirectional in (False, True):
            name = f"{kind}-{'both' if bidirectional else 'one'}"
            cell = {"kind": kind, "units": 3, "bidirectional": bidirectional}
            last, every = cell | {"returns": "last"}, cell | {"returns": "sequence"}
            cells[f"{name}-last"] = {"in_shape": SHORT, "layers": [last, OUTPUT]}
            cells[f"{name}-sequence"] = _sequence(every, shape=SHORT)
            cells[f"{name}-last-padded"] = _padded(last, shape=SHORT)
            cells[f"{name}-sequence-padded"] = _padded(every, reader, shape=SHORT)
    return cells


CONV = {"kind": "conv2d", "filters": 3}
# no bias before a BatchNorm, which subtracts the mean: its gradient would be noise
BLOCK = [CONV | {"use_bias": False}, {"kind": "batch_norm"}, TANH]

KINDS: dict[str, dict[str, Any]] = {
    "dense-on-images": _image({"kind": "dense", "units": 3}),
    "reshape": _image({"kind": "reshape", "shape": [5, -1]}, {"kind": "dense", "units": 2}),
    "conv2d-same": _image(CONV),
    "conv2d-same-even": _image(CONV | {"kernel_size": 4}),
    "conv2d-valid-strides": _image(CONV | {"padding": "valid", "strides": 2, "use_bias": False}),
    "conv1d-same": _sequence({"kind": "conv1d", "filters": 3}),
    "conv1d-same-even": _sequence({"kind": "conv1d", "filters": 3, "kernel_size": 2}),
    "conv1d-valid-strides": _sequence({"kind": "conv1d", "filters": 3, "padding": "valid", "strides": 2}),
    "conv1d-causal": _sequence({"kind": "conv1d", "filters": 3, "padding": "causal"}),
    "pool-max": _image(CONV, {"kind": "pool"}),
    "pool-average": _image(CONV, {"kind": "pool", "mode": "average"}),
    "pool-max-steps": _sequence({"kind": "dense", "units": 3}, {"kind": "pool", "size": 3}),
    "pool-average-steps": _sequence({"kind": "dense", "units": 3}, {"kind": "pool", "mode": "average"}),
    "global-pool-average": {"in_shape": IMAGE, "layers": [CONV, {"kind": "global_pool"}, OUTPUT]},
    "global-pool-max": {"in_shape": IMAGE, "layers": [CONV, {"kind": "global_pool", "mode": "max"}, OUTPUT]},
    "global-pool-of-dense": {
        "in_shape": IMAGE,
        "layers": [{"kind": "dense", "units": 3}, {"kind": "global_pool"}, OUTPUT],
    },
    "global-pool-average-padded": _padded({"kind": "dense", "units": 3}, {"kind": "global_pool"}),
    "global-pool-max-padded": _padded({"kind": "dense", "units": 3}, {"kind": "global_pool", "mode": "max"}),
    "upsample": _image({"kind": "dense", "units": 2}, {"kind": "upsample", "size": 3}),
    "upsample-steps": _sequence({"kind": "dense", "units": 2}, {"kind": "upsample"}),
    "flatten-padded": _padded({"kind": "dense", "units": 2}, FLAT),
    **_cells(),
    "embedding": {
        "in_shape": [6],
        "vocabulary": 9,
        "layers": [{"kind": "embedding", "units": 3}, FLAT, OUTPUT],
    },
    "embedding-padded": {
        "in_shape": [6],
        "vocabulary": 9,
        "padded": True,
        "layers": [{"kind": "to_sequence", "units": 3}, {"kind": "global_pool"}, OUTPUT],
    },
    "positions-learned": _sequence({"kind": "positions"}),
    "positions-sinusoidal": _sequence(
        {"kind": "positions", "encoding": "sinusoidal"}, {"kind": "dense", "units": 3}, TANH
    ),
    "attention": _sequence({"kind": "attention", "heads": 2}),
    "attention-causal": _sequence({"kind": "attention", "heads": 2, "causal": True}),
    "attention-padded": _padded({"kind": "attention", "heads": 2}, {"kind": "global_pool"}),
    "attention-causal-padded": _padded(
        {"kind": "attention", "heads": 4, "causal": True}, {"kind": "global_pool"}
    ),
    "layer-norm": _sequence({"kind": "layer_norm", "epsilon": 0.01}),
    "batch-norm-images": _image(*BLOCK),
    "batch-norm-steps": _sequence({"kind": "batch_norm", "epsilon": 0.1, "momentum": 0.7}),
    "batch-norm-vectors": {"in_shape": [5], "layers": [{"kind": "batch_norm"}, TANH, OUTPUT]},
    "residual": _image({"kind": "residual", "body": [{"kind": "dense", "units": 2}, TANH]}),
    "residual-shortcut": _image(
        CONV, {"kind": "residual", "body": [*BLOCK, CONV], "shortcut": [{"kind": "dense", "units": 3}]}
    ),
    "residual-padded": _padded(
        {"kind": "residual", "body": [{"kind": "layer_norm"}, {"kind": "attention", "heads": 2}]},
        {"kind": "global_pool"},
    ),
    "softmax-of-channels": _image(CONV, {"kind": "activation", "function": "softmax"}),
}

ZOO: dict[str, dict[str, Any]] = {
    "images": {
        "in_shape": IMAGE,
        "layers": [
            *BLOCK,
            {"kind": "residual", "body": [*BLOCK, CONV], "shortcut": [CONV | {"kernel_size": 1}]},
            {"kind": "pool"},
            {"kind": "upsample"},
            CONV | {"padding": "valid", "strides": 2},
            FLAT,
            OUTPUT,
        ],
    },
    "steps": _short(
        {"kind": "conv1d", "filters": 4, "padding": "causal"},
        {"kind": "batch_norm"},
        {"kind": "pool", "mode": "average"},
        {"kind": "rnn", "units": 3, "bidirectional": True},
        FLAT,
    ),
    "padded": _short(
        {"kind": "lstm", "units": 2, "bidirectional": True},
        {"kind": "residual", "body": [{"kind": "layer_norm"}, {"kind": "attention", "heads": 2}]},
        {"kind": "gru", "units": 3, "returns": "last"},
        padded=True,
    ),
    "tokens": {
        "in_shape": [4],
        "vocabulary": 9,
        "padded": True,
        "layers": [
            {"kind": "to_sequence", "units": 4},
            {"kind": "positions"},
            {"kind": "attention", "heads": 2, "causal": True},
            {"kind": "global_pool", "mode": "max"},
            OUTPUT,
        ],
    },
}
"""Networks that together have most kinds, for tests that are too slow to run for each kind."""


def task_of(case: dict[str, Any], execution: str, steps: int = 1) -> Task:
    """A task with this number of steps per epoch."""
    return make_task(execution, **case, batches=[steps, BATCH])


def random_weights(network: Network) -> dict[str, Any]:
    """Random values for all weights, including biases and running statistics, so that a lost one is
    noticed."""
    random = np.random.default_rng(7)
    weights = {name: 0.4 * random.normal(size=p.shape) for name, p in network.params().items()}
    for name in weights:
        if name.endswith(("gamma", "moving_variance")):
            weights[name] = random.uniform(0.5, 1.5, weights[name].shape)
    return weights


def network_of(case: dict[str, Any]) -> Network:
    """The network of a case."""
    network: Network = adapter_cases.network(task_of(case, "eager"))
    return network
