"""Compare the traces of two frameworks' trainings of the same case, gate by gate.

Each framework trains a case (`harness.core.certificates.cases`) on its own, in float64, and writes a trace.
Traces are compared afterwards, so no framework ever sees another's numbers. Dropout is zero in the compared
training, because masks cannot be equal. The evaluation gate uses the network with dropout, so it fails if a
mask stays active in evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.core.training import weights
from harness.core.validation import AllowInfinity

Trace = Mapping[str, NDArray[Any]]
"""The arrays recorded while a framework trained a case, by name: see `harness/worker/trace.py`."""

BOUND = 1e-10
"""The bound of all gates, in float64: larger deviations come from different mathematics, not rounding."""

Deviation = Annotated[float, AllowInfinity()]
"""A largest difference; infinite if a value is not finite or has no counterpart."""

GATES = ("parameters", "logits", "gradients", "losses", "weights", "evaluation")


@dataclass(frozen=True)
class Gate:
    """One comparison: the largest deviation, its location, and the bound."""

    name: str
    deviation: Deviation
    bound: float
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether the deviation is within the bound; NaN is not."""
        return self.deviation <= self.bound


@dataclass(frozen=True)
class Comparison:
    """The gates of a case between two frameworks."""

    reference: str
    framework: str
    gates: tuple[Gate, ...] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """Whether all gates passed."""
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True)
class NativeOptimizerCheck:
    """The comparison of a framework's own optimizer with the shared rule, inside that framework.

    `deviation` is the largest difference in a loss or a weight, over all steps. If it exceeds the bound,
    `known` has the adapter's names for its deviations, and `remainder` the largest difference from the rule
    that implements them (`harness.core.certificates.native_rules`). `unproven`: no such rule exists.
    The field names are keys of certificate files.
    """

    deviation: Deviation
    bound: float
    known: tuple[str, ...] = ()
    remainder: Deviation | None = None
    unproven: bool = False

    @property
    def verdict(self) -> Literal["exact", "deviates", "fails"]:
        """`exact`; `deviates` (only in the named deviations, as far as provable); or `fails`."""
        if self.deviation <= self.bound:
            return "exact"
        proven = self.remainder is not None and self.remainder <= self.bound
        return "deviates" if self.known and (proven or self.unproven) else "fails"


def compare(reference: str, a: Trace, framework: str, b: Trace) -> Comparison:
    """Compare two traces of a case, gate by gate."""
    return Comparison(
        reference,
        framework,
        (
            _parameters(a, b),
            _array_gate("logits", a, b),
            _weights_gate("gradients", "gradient/", a, b),
            _array_gate("losses", a, b),
            _weights_gate("weights", "weights/", a, b),
            _array_gate("evaluation", a, b),
        ),
    )


def training_gap(a: Trace, b: Trace) -> float:
    """Return the largest difference between two traces in the loss of a step or in a weight after it."""
    gates = _array_gate("losses", a, b), _weights_gate("weights", "weights/", a, b)
    return max(gate.deviation for gate in gates)


def _parameters(a: Trace, b: Trace) -> Gate:
    """Count the parameters that only one side has, or that differ in shape."""
    first, second = ({n: v.shape for n, v in t.items() if n.startswith("initial/")} for t in (a, b))
    wrong = sorted(n for n in first.keys() | second.keys() if first.get(n) != second.get(n))
    return Gate(
        "parameters", float(len(wrong)), 0.0, ", ".join(n.removeprefix("initial/") for n in wrong[:3])
    )


def _array_gate(name: str, a: Trace, b: Trace) -> Gate:
    if a[name].shape != b[name].shape:
        return Gate(name, math.inf, BOUND, f"shapes {a[name].shape} and {b[name].shape}")
    with np.errstate(invalid="ignore"):
        difference = np.abs(a[name] - b[name])
    if not np.isfinite(difference).all():
        return Gate(name, math.inf, BOUND, "not finite")
    where = f"step {1 + int(np.argmax(difference))}" if name == "losses" else ""
    return Gate(name, float(difference.max(initial=0.0)), BOUND, where)


def _weights_gate(name: str, prefix: str, a: Trace, b: Trace) -> Gate:
    first, second = ({n: v for n, v in t.items() if n.startswith(prefix)} for t in (a, b))
    deviation = weights.compare(first, second)
    where = deviation.mismatches[0] if deviation.mismatches else deviation.worst
    return Gate(name, deviation.largest, BOUND, where.removeprefix(prefix))
