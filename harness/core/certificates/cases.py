"""The trainings that a certificate compares: small networks, drawn rows, a learning rate for every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core import rng
from harness.core.adapter import Examples, Loss
from harness.core.network import AnyNode, Dropout, Input, ModelSpec, Network, Node
from harness.core.training.optimizers import Rule

STEPS, BATCH_SIZE, TRAIN_ROWS, TEST_ROWS = 20, 8, 40, 12
WEIGHT_BUDGET_BYTES = 64_000_000  # of the weights that a trace may hold; larger networks keep fewer steps


@dataclass(frozen=True)
class Case:
    """One training to compare: a network, its task, an optimizer, and the rate of each of its steps;
    `freeze` names the layers that are not trained."""

    name: str
    layers: tuple[Any, ...]
    input: Input
    outputs: int
    loss: Loss
    optimizer: Rule
    rates: tuple[float, ...]
    seed: int = 0
    freeze: tuple[str, ...] = ()

    def network(self) -> Network:
        """The network as the user wrote it."""
        spec = ModelSpec.parse(list(self.layers)).freeze(self.freeze)
        return spec.resolve(self.input, self.outputs)


def examples(case: Case) -> Examples:
    """The rows that a case is trained and evaluated on: drawn, so that they need no data set.

    Sequences of unequal length get lengths from 1 to all steps, with zeros behind; token ids are never 0
    (padding) within a sequence.
    """
    x: dict[str, NDArray[np.float64]] = {}
    y: dict[str, Any] = {}
    lengths: dict[str, NDArray[np.int64]] = {}
    given = case.input
    for split, rows in (("train", TRAIN_ROWS), ("val", TEST_ROWS), ("test", TEST_ROWS)):
        key = ("certificate", case.seed, split)
        if given.vocabulary:
            x[split] = 1 + _integers((rows, *given.shape), given.vocabulary - 1, *key, "x").astype(np.float64)
        else:
            x[split] = rng.normal((rows, *given.shape), *key, "x")
        if given.lengths:
            lengths[split] = 1 + _integers((rows,), given.shape[0], *key, "lengths")
            valid = np.arange(given.shape[0]) < lengths[split][:, None]
            x[split] *= valid.reshape(*valid.shape, *(1,) * (x[split].ndim - 2))
        if case.loss == "mse":
            y[split] = rng.normal((rows, case.outputs), *key, "y")
        else:
            y[split] = _integers((rows,), max(2, case.outputs), *key, "y")
    return Examples(x, y, lengths or None)


def without_dropout(network: Network) -> Network:
    """The network with every dropout rate at zero."""
    return replace(network, nodes=tuple(map(_without_dropout, network.nodes)))


def kept_steps(network: Network, steps: int = STEPS) -> tuple[int, ...]:
    """The steps (from 1) after which a trace keeps all weights: every one where they fit the budget.

    A network too large for that keeps as many as fit, the first and the last among them.
    """
    size = 8 * sum(param.size for param in network.params().values())
    room = max(2, WEIGHT_BUDGET_BYTES // max(size, 1))
    if room >= steps:
        return tuple(range(1, steps + 1))
    return tuple(sorted({round(value) for value in np.linspace(1, steps, room)}))


def _without_dropout(node: AnyNode) -> AnyNode:
    if isinstance(node, Node):
        is_dropout = isinstance(node.layer, Dropout)
        return replace(node, layer=Dropout(0.0)) if is_dropout else node
    body, shortcut = (tuple(map(_without_dropout, part)) for part in (node.body, node.shortcut))
    return replace(node, body=body, shortcut=shortcut)


def _integers(shape: Sequence[int], below: int, *key: int | str) -> NDArray[np.int64]:
    """Whole numbers from 0 up to, not including, `below`."""
    return np.minimum(rng.uniform(tuple(shape), *key) * below, below - 1).astype(np.int64)
