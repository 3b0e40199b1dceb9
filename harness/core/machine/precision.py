"""Which precisions a device has. float32, float64 and bf16 everywhere on a CPU: one without instructions for
bfloat16 computes it by way of float32, slowly. On a card, tf32 and bf16 need the matrix units that NVIDIA's
cards have since Ampere (compute capability 8.0); without them, frameworks fall back to float32 silently.
"""

from __future__ import annotations

from harness.core.adapter import Precision
from harness.core.validation import Mistake

AMPERE = (8, 0)
ON_CPU: tuple[Precision, ...] = ("float32", "float64", "bf16")
ON_ANY_CARD: tuple[Precision, ...] = ("float32", "float64")

Capability = tuple[int, int]
"""NVIDIA's number of what a card can compute, major and minor."""


def mistakes(precision: Precision, device: str, capability: Capability | None = None) -> list[Mistake]:
    """What keeps a device (`cpu`, `cuda`, `cuda:1`) from a precision; a silent card is taken to have all."""
    if device == "cpu":
        possible, what = ON_CPU, "a CPU"
    elif capability is None or capability >= AMPERE:
        return []
    else:
        possible, what = (
            ON_ANY_CARD,
            "a card of compute capability {}.{} (it takes {}.{})".format(*capability, *AMPERE),
        )
    if precision in possible:
        return []
    return [Mistake("precision", f"{what} has no {precision}", ", ".join(possible))]
