"""Find the fastest execution of an architecture on this machine by a short comparison of all candidates."""

from __future__ import annotations

from pathlib import Path

from harness.core.machine import statistics
from tests.bench.comparison import Side, measure_in_turns, train_s

EXECUTIONS = {
    "torch": ("eager", "compiled"),
    "keras": ("compiled", "epoch"),
    "keras_jax": ("compiled", "epoch"),
}
"""The candidates. Tutorial loops are never the fastest, and Keras on torch is never faster than torch."""


def candidates(model: str, settings: tuple[str, ...] = ()) -> list[Side]:
    """Every execution that may be the fastest, including ones that a framework refuses."""
    return [
        Side(framework, execution, model=model, settings=settings)
        for framework, executions in EXECUTIONS.items()
        for execution in executions
    ]


def fastest(model: str, folder: Path, settings: tuple[str, ...] = (), turn_s: float = 0.0) -> dict[str, Side]:
    """The fastest side of each framework, fastest framework first, measured in turns of at least `turn_s`.

    Refused executions are left out, and frameworks that refuse all of them.
    """
    sides = candidates(model, settings=settings)
    measured = measure_in_turns(sides, folder, seconds=0.0, least=5, turn_s=turn_s).epochs
    times = {
        side: statistics.median(train_s(epochs))
        for side, epochs in zip(sides, measured, strict=True)
        if epochs
    }
    best: dict[str, Side] = {}
    for side in sorted(times, key=times.__getitem__):
        best.setdefault(side.framework, side)
    return best
