"""Which precisions a device supports.

Every CPU supports float32, float64 and bf16; one without bfloat16 instructions emulates it by way of float32,
slowly. On a card, tf32 and bf16 need the matrix units that NVIDIA's cards have since Ampere (compute
capability 8.0); without them, frameworks silently fall back to float32.
"""

from __future__ import annotations

from harness.core.adapter import Precision
from harness.core.validation import Mistake

AMPERE = (8, 0)
ON_CPU: tuple[Precision, ...] = ("float32", "float64", "bf16")
ON_ANY_CARD: tuple[Precision, ...] = ("float32", "float64")

Capability = tuple[int, int]
"""NVIDIA's compute capability of a card, major and minor."""


def mistakes(precision: Precision, device: str, capability: Capability | None = None) -> list[Mistake]:
    """Return why a device (`cpu`, `cuda`, `cuda:1`) cannot run a precision; empty if it can.

    A card whose capability is not known is assumed to support all.
    """
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
