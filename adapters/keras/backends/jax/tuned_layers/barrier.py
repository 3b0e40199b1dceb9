"""Typed wrappers of XLA's barriers: one against algebraic simplification, one against loop fusion."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata

T = TypeVar("T", bound=Any)


def optimization_barrier(values: T) -> T:
    """Return the arrays unchanged, and keep XLA from folding the operation that produced them into the one
    that uses them, such as a transpose into a matrix product. XLA removes this barrier before it fuses loops.
    """
    unchanged: T = lax.optimization_barrier(values)  # type: ignore[no-untyped-call]
    return unchanged


@jax.custom_vjp
def no_fusion(x: Array) -> Array:
    """Return the array unchanged and in its own shape, and keep XLA from fusing its producer with its user.

    Fused with a following reshape, a loop runs over the flat result and finds each element's position by
    divisions, one element at a time: the pooled images of a CNN then take 0.80 ms instead of 0.11. The
    barrier is a call of an identity function that XLA must not inline; it costs about 1 µs.
    """
    unchanged: Array = set_xla_metadata(_identity(x), inlineable="false")  # type: ignore[no-untyped-call]
    return unchanged


@jax.jit
def _identity(x: Array) -> Array:
    return x


def _forward(x: Array) -> tuple[Array, None]:
    return no_fusion(x), None


def _backward(_: None, dy: Array) -> tuple[Array]:
    return (dy,)


no_fusion.defvjp(_forward, _backward)
