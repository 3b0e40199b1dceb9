"""Where a canonical weight lives in a module, and how the two layouts map onto each other.

The mapping is one of tensors of a shape, and not of the parameters themselves, because an optimizer keeps
tensors of the same shapes, which travel in the canonical layout as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

Layout = Callable[[Tensor], Tensor]
Of = Callable[[Tensor], Tensor]
"""From a parameter or buffer to a tensor of its shape: itself, or what an optimizer keeps of it."""


def as_is(tensor: Tensor) -> Tensor:
    """Where both layouts are the same."""
    return tensor


@dataclass(frozen=True, eq=False)
class WeightBinding:
    """A canonical weight: `holders` are the parameters or buffers that hold it, `get` makes the canonical
    array of tensors of their shapes, `put` writes one into such tensors."""

    name: str
    holders: tuple[Tensor, ...]
    get: Callable[[Sequence[Tensor]], Tensor]
    put: Callable[[Sequence[Tensor], Tensor], object]

    def read(self, of: Of = Tensor.detach) -> Tensor:
        """The weight as it is now, or what `of` gives of it, in the canonical layout."""
        return self.get([of(holder) for holder in self.holders])

    def write(self, value: Tensor, of: Of = Tensor.detach) -> None:
        """Take a new value in the canonical layout."""
        self.put([of(holder) for holder in self.holders], value)


class BuiltLayer(NamedTuple):
    """The module of a layer, and where its canonical weights are."""

    module: nn.Module
    bound: tuple[WeightBinding, ...] = ()


def bind(
    name: str, holder: Tensor, to_native: Layout = as_is, to_canonical: Layout = as_is, part: Layout = as_is
) -> WeightBinding:
    """A canonical weight that one tensor holds, or the `part` of it that is a view."""
    return WeightBinding(
        name,
        (holder,),
        lambda tensors: to_canonical(part(tensors[0])),
        lambda tensors, value: part(tensors[0]).copy_(to_native(value)),
    )


class Padding(NamedTuple):
    """Which steps of a batch are padding: `lengths` int64 `[batch]`, `valid` bool `[batch, steps]`."""

    lengths: Tensor
    valid: Tensor
