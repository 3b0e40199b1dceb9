"""When are two trainings the same? Cases to train, traces of what each framework did, and the gates.

A case is small and made of numbers that no framework chose: canonical weights, drawn inputs, an order of
batches and a learning rate for every step. Each framework trains it by itself, in float64, and leaves a
trace; traces are compared afterwards, so no framework ever sees another's numbers. Dropout is set to zero
where the training is compared, because its masks can't be equal; it is back for the evaluation gate, which
would notice a mask that was left on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.core.training import weights
from harness.core.validation import Unlimited

Trace = Mapping[str, NDArray[Any]]
"""The arrays that a framework's training of a case left, by name: see `harness/worker/trace.py`."""

BOUND = 1e-10  # float64; what exceeds it is other mathematics and not rounding (DESIGN: one bound for all)

Deviation = Annotated[float, Unlimited()]
"""A largest difference; infinite where a value is not finite, or where there is nothing to compare with."""

GATES = ("parameters", "logits", "gradients", "losses", "weights", "evaluation")


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
class NativeOptimizerCheck:
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
