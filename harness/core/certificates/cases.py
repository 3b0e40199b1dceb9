"""The trainings that a certificate compares.

A case is a small training of made-up numbers only: canonical weights, rows drawn from a seed, an order of
batches and a learning rate for every step. It needs no data set, and no framework chooses any of its numbers,
so two frameworks that differ on it differ in their mathematics.
"""

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
WEIGHT_BUDGET_BYTES = 64_000_000  # of all weights in a trace; larger networks record fewer steps


@dataclass(frozen=True)
class Case:
    """One training to compare: a network, its task, an optimizer, and the learning rate of each step.

    `freeze` names the layers that are not trained.
    """

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
        """Resolve the network as the user wrote it, dropout included."""
        spec = ModelSpec.parse(list(self.layers)).freeze(self.freeze)
        return spec.resolve(self.input, self.outputs)


def examples(case: Case) -> Examples:
    """Draw the rows that a case is trained and evaluated on.

    Sequences of unequal length get lengths from 1 to all steps and are padded with zeros; token ids are never
    0 (padding) within a sequence.
    """
    x: dict[str, NDArray[np.float64]] = {}
    y: dict[str, Any] = {}
    lengths: dict[str, NDArray[np.int64]] = {}
    sample = case.input
    for split, rows in (("train", TRAIN_ROWS), ("val", TEST_ROWS), ("test", TEST_ROWS)):
        key = ("certificate", case.seed, split)
        if sample.vocabulary:
            ids = _integers((rows, *sample.shape), sample.vocabulary - 1, *key, "x")
            x[split] = 1 + ids.astype(np.float64)
        else:
            x[split] = rng.normal((rows, *sample.shape), *key, "x")
        if sample.lengths:
            lengths[split] = 1 + _integers((rows,), sample.shape[0], *key, "lengths")
            valid = np.arange(sample.shape[0]) < lengths[split][:, None]
            x[split] *= valid.reshape(*valid.shape, *(1,) * (x[split].ndim - 2))
        if case.loss == "mse":
            y[split] = rng.normal((rows, case.outputs), *key, "y")
        else:
            y[split] = _integers((rows,), max(2, case.outputs), *key, "y")
    return Examples(x, y, lengths or None)


def without_dropout(network: Network) -> Network:
    """Return the network with all dropout rates at zero."""
    return replace(network, nodes=tuple(map(_without_dropout, network.nodes)))


def recorded_steps(network: Network) -> tuple[int, ...]:
    """Return the steps (from 1) after which a trace records all weights: every step if they fit the budget.

    For larger networks as many as fit, evenly spread, including the first and the last.
    """
    size = 8 * sum(param.size for param in network.params().values())
    capacity = max(2, WEIGHT_BUDGET_BYTES // max(size, 1))
    if capacity >= STEPS:
        return tuple(range(1, STEPS + 1))
    return tuple(sorted({round(value) for value in np.linspace(1, STEPS, capacity)}))


def _without_dropout(node: AnyNode) -> AnyNode:
    if isinstance(node, Node):
        is_dropout = isinstance(node.layer, Dropout)
        return replace(node, layer=Dropout(0.0)) if is_dropout else node
    body, shortcut = (tuple(map(_without_dropout, part)) for part in (node.body, node.shortcut))
    return replace(node, body=body, shortcut=shortcut)


def _integers(shape: Sequence[int], below: int, *key: int | str) -> NDArray[np.int64]:
    """Draw integers in [0, below)."""
    return np.minimum(rng.uniform(tuple(shape), *key) * below, below - 1).astype(np.int64)
