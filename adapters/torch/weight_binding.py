"""Map canonical weights to the parameters and buffers of a module, and convert between the two layouts.

The conversions apply to any tensors of the right shapes, not only to the parameters themselves: an
optimizer's state has the same shapes, and it too is saved and loaded in the canonical layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

Layout = Callable[[Tensor], Tensor]
TensorLookup = Callable[[Tensor], Tensor]
"""From a parameter or buffer to a tensor of its shape: itself, or a slot that an optimizer stores for it."""


def as_is(tensor: Tensor) -> Tensor:
    """The conversion between two equal layouts."""
    return tensor


@dataclass(frozen=True, eq=False)
class WeightBinding:
    """A canonical weight and the parameters or buffers that hold it, `holders`.

    `to_canonical` builds the canonical array from tensors of the holders' shapes; `copy_into` writes a
    canonical array into such tensors.
    """

    name: str
    holders: tuple[Tensor, ...]
    to_canonical: Callable[[Sequence[Tensor]], Tensor]
    copy_into: Callable[[Sequence[Tensor], Tensor], object]

    def read(self, lookup: TensorLookup = Tensor.detach) -> Tensor:
        """Return the current weight, or the slot that `lookup` selects, in the canonical layout."""
        return self.to_canonical([lookup(holder) for holder in self.holders])

    def write(self, value: Tensor, lookup: TensorLookup = Tensor.detach) -> None:
        """Set the weight, or the slot that `lookup` selects, from a value in the canonical layout."""
        self.copy_into([lookup(holder) for holder in self.holders], value)


class BuiltLayer(NamedTuple):
    """The module of a layer and the bindings of its canonical weights."""

    module: nn.Module
    bindings: tuple[WeightBinding, ...] = ()


def bind(
    name: str, holder: Tensor, to_native: Layout = as_is, to_canonical: Layout = as_is, part: Layout = as_is
) -> WeightBinding:
    """Bind a canonical weight to one tensor, or to the view of it that `part` returns."""
    return WeightBinding(
        name,
        (holder,),
        lambda tensors: to_canonical(part(tensors[0])),
        lambda tensors, value: part(tensors[0]).copy_(to_native(value)),
    )


class Padding(NamedTuple):
    """The valid steps of a padded batch: `lengths` int64 `[batch]`, `valid` bool `[batch, steps]`."""

    lengths: Tensor
    valid: Tensor
