"""Where a canonical weight lives in a module, and how the two layouts map onto each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

Layout = Callable[[Tensor], Tensor]


def as_is(tensor: Tensor) -> Tensor:
    """Where both layouts are the same."""
    return tensor


@dataclass(frozen=True)
class Bound:
    """A canonical weight in canonical layout: `read` gives it as it is now, `write` takes a new value."""

    name: str
    read: Callable[[], Tensor]
    write: Callable[[Tensor], object]


class Built(NamedTuple):
    """The module of a layer, and where its canonical weights are."""

    module: nn.Module
    bound: tuple[Bound, ...] = ()


def bind(name: str, tensor: Tensor, to_native: Layout = as_is, to_canonical: Layout = as_is) -> Bound:
    """A canonical weight that one tensor, or a slice of one, holds."""
    held = tensor.detach()
    return Bound(name, lambda: to_canonical(held), lambda value: held.copy_(to_native(value)))


class Padding(NamedTuple):
    """Which steps of a batch are padding: `lengths` int64 `[batch]`, `valid` bool `[batch, steps]`."""

    lengths: Tensor
    valid: Tensor
