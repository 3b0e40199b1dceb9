"""When are two trainings the same? Cases to train, traces of what each framework did, and the gates.

A case is small and made of numbers that no framework chose: canonical weights, drawn inputs, an order of
batches and a learning rate for every step. Each framework trains it by itself, in float64, and leaves a
trace; traces are compared afterwards, so no framework ever sees another's numbers. Dropout is set to zero
where the training is compared, because its masks can't be equal; it is back for the evaluation gate, which
would notice a mask that was left on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.core import rng
from harness.core.adapter import Examples, Loss
from harness.core.network import AnyNode, Dropout, Input, ModelSpec, Network, Node
from harness.core.training import weights
from harness.core.training.optimizers import Rule
from harness.core.validation import Unlimited

Trace = Mapping[str, NDArray[Any]]
"""The arrays that a framework's training of a case left, by name: see `harness/worker/trace.py`."""

BOUND = 1e-10  # float64; what exceeds it is other mathematics and not rounding (DESIGN: one bound for all)
STEPS, BATCH_SIZE, TRAIN_ROWS, TEST_ROWS = 20, 8, 40, 12
WEIGHT_BUDGET_BYTES = 64_000_000  # of the weights that a trace may hold; larger networks keep fewer steps

Deviation = Annotated[float, Unlimited()]
"""A largest difference; infinite where a value is not finite, or where there is nothing to compare with."""

GATES = ("parameters", "logits", "gradients", "losses", "weights", "evaluation")


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


@dataclass(frozen=True)
class Gate:
    """One comparison: the largest deviation, where it was, and whether it keeps the bound."""

    name: str
    deviation: Deviation
    bound: float
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether the deviation keeps the bound; NaN does not."""
        return self.deviation <= self.bound


@dataclass(frozen=True)
class Comparison:
    """All gates of a case between two frameworks."""

    reference: str
    framework: str
    gates: tuple[Gate, ...] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """Whether every gate was passed."""
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True)
class Native:
    """A framework's own optimizer held against the shared rule, inside that framework.

    `deviation` is the largest difference in a loss or a weight, over all steps. Where it breaks the bound,
    `known` has the names that the adapter has for it, and `remainder` the largest difference from the rule in
    which these deviations are written down (`harness.core.certificates.native_rules`). `unproven`: no such
    rule is written.
    """

    deviation: Deviation
    bound: float
    known: tuple[str, ...] = ()
    remainder: Deviation | None = None
    unproven: bool = False

    @property
    def verdict(self) -> Literal["exact", "deviates", "fails"]:
        """exact; deviates, in what is named and in nothing else as far as that can be proven; or fails."""
        if self.deviation <= self.bound:
            return "exact"
        proven = self.remainder is not None and self.remainder <= self.bound
        return "deviates" if self.known and (proven or self.unproven) else "fails"


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


def compare(reference: str, a: Trace, framework: str, b: Trace, bound: float = BOUND) -> Comparison:
    """Hold two traces of a case against each other, gate by gate."""
    return Comparison(
        reference,
        framework,
        (
            _parameters(a, b),
            _array_gate("logits", a, b, bound),
            _weights_gate("gradients", "gradient/", a, b, bound),
            _array_gate("losses", a, b, bound),
            _weights_gate("weights", "weights/", a, b, bound),
            _array_gate("evaluation", a, b, bound),
        ),
    )


def training_gap(a: Trace, b: Trace) -> float:
    """The largest difference between two traces in the loss of a step or in a weight after it."""
    gates = _array_gate("losses", a, b, BOUND), _weights_gate("weights", "weights/", a, b, BOUND)
    return max(gate.deviation for gate in gates)


def _parameters(a: Trace, b: Trace) -> Gate:
    """Names and shapes: how many parameters one side has and the other has not, or in another shape."""
    first, second = ({n: v.shape for n, v in t.items() if n.startswith("initial/")} for t in (a, b))
    wrong = sorted(n for n in first.keys() | second.keys() if first.get(n) != second.get(n))
    return Gate(
        "parameters", float(len(wrong)), 0.0, ", ".join(n.removeprefix("initial/") for n in wrong[:3])
    )


def _array_gate(name: str, a: Trace, b: Trace, bound: float) -> Gate:
    if a[name].shape != b[name].shape:
        return Gate(name, math.inf, bound, f"shapes {a[name].shape} and {b[name].shape}")
    with np.errstate(invalid="ignore"):
        difference = np.abs(a[name] - b[name])
    if not np.isfinite(difference).all():
        return Gate(name, math.inf, bound, "not finite")
    where = f"step {1 + int(np.argmax(difference))}" if name == "losses" else ""
    return Gate(name, float(difference.max(initial=0.0)), bound, where)


def _weights_gate(name: str, prefix: str, a: Trace, b: Trace, bound: float) -> Gate:
    first, second = ({n: v for n, v in t.items() if n.startswith(prefix)} for t in (a, b))
    found = weights.compare(first, second)
    where = found.mismatches[0] if found.mismatches else found.worst
    return Gate(name, found.largest, bound, where.removeprefix(prefix))


def _without_dropout(node: AnyNode) -> AnyNode:
    if isinstance(node, Node):
        is_dropout = isinstance(node.layer, Dropout)
        return replace(node, layer=Dropout(0.0)) if is_dropout else node
    body, shortcut = (tuple(map(_without_dropout, part)) for part in (node.body, node.shortcut))
    return replace(node, body=body, shortcut=shortcut)


def _integers(shape: Sequence[int], below: int, *key: int | str) -> NDArray[np.int64]:
    """Whole numbers from 0 up to, not including, `below`."""
    return np.minimum(rng.uniform(tuple(shape), *key) * below, below - 1).astype(np.int64)
