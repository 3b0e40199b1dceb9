"""A barrier for XLA's algebra, typed."""

from __future__ import annotations

from typing import Any, TypeVar

from jax import lax

T = TypeVar("T", bound=Any)


def apart(values: T) -> T:
    """The arrays as they are: XLA does not fold what made them into what uses them, such as a transpose into
    a product. It is gone before XLA fuses loops."""
    kept: T = lax.optimization_barrier(values)  # type: ignore[no-untyped-call]
    return kept
