"""Build the `nn.Module` of a network, with its residual blocks, and read and write its canonical weights.

The order of axes is decided here. Samples enter and leave in the canonical order (height, width, channels);
spatial layers need torch's order (channels first). A permutation, which is a view, is inserted only where a
layer needs the other order than its input has. Flatten therefore sees the canonical order too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import assert_never

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.torch import layers, spatial
from adapters.torch.layers import BuildOptions
from adapters.torch.weight_binding import Padding, TensorLookup, WeightBinding
from harness.core.adapter import Float, Loss, Weights
from harness.core.network import AnyNode, Network, ResidualNode
from harness.core.training.training_state import check_slots

Criterion = Callable[[Tensor, Tensor], Tensor]
"""(outputs `[batch, n]`, targets of the batch) -> mean loss, a scalar tensor"""


class Chain(nn.Module):
    """Modules in sequence; those that need the padding of a batch receive it."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(modules)
        padding_types = (*layers.NEEDS_PADDING, Chain, Block)
        self._calls = [(module, isinstance(module, padding_types)) for module in self.layers]

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        for module, takes_padding in self._calls:
            x = module(x, padding) if takes_padding else module(x)
        return x


class Block(nn.Module):
    """A residual block: shortcut(x) + body(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        result: Tensor = self.shortcut(x, padding) + self.body(x, padding)
        return result


class TorchNetwork(Chain):
    """A network; its inputs are a batch `[batch, *sample]` and, for padded sequences, lengths `[batch]`.

    In `mixed` precision torch's autocast picks the dtype of each operation. The outputs are cast to float32,
    so that losses are computed in float32.
    """

    mixed = False

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:  # type: ignore[override]
        padding = None
        if lengths is not None:
            padding = Padding(lengths, torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1))
        if not self.mixed:
            return super().forward(x, padding)
        # each weight is used once a step, so a cache of cast weights has no benefit
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            return super().forward(x, padding).float()


@dataclass(frozen=True)
class Model:
    """A module and the bindings of its canonical weights, in the order of the network's parameters."""

    network: Network
    module: TorchNetwork
    bindings: tuple[WeightBinding, ...]

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by the module's own names."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The buffers that training changes: running statistics. Constants are excluded."""
        persistent = self.module.state_dict().keys()
        return {name: buffer for name, buffer in self.module.named_buffers() if name in persistent}

    def load(self, weights: Weights) -> None:
        """Load canonical weights; raises ValueError unless names and shapes are exactly the model's."""
        expected = {b.name: tuple(b.read().shape) for b in self.bindings}
        shapes = {name: array.shape for name, array in weights.items()}
        if shapes != expected:
            raise ValueError(f"the weights are {shapes}, the network has {expected}")
        with torch.no_grad():
            for b in self.bindings:
                b.write(torch.from_numpy(np.ascontiguousarray(weights[b.name])))

    def weights(self) -> dict[str, Float]:
        """Return a copy of the canonical weights."""
        return {b.name: to_numpy(b.read()) for b in self.bindings}

    @cached_property
    def trained(self) -> tuple[WeightBinding, ...]:
        """The bindings of the trained weights, in the order of `bindings`."""
        names = set(self.network.trained_weights())
        return tuple(b for b in self.bindings if b.name in names)

    def slots(self, tensors: Sequence[Mapping[str, Tensor]], names: Iterable[str]) -> dict[str, Float]:
        """Return an optimizer's slots in the canonical layout, by `<weight>/<slot>`.

        `tensors` has, for each of `parameters` in order, tensors of its shape by the `names` of the slots.
        """
        lookups = [(name, self._slot_lookup(tensors, name)) for name in names]
        return {
            f"{b.name}/{name}": to_numpy(b.read(lookup)) for b in self.trained for name, lookup in lookups
        }

    def load_slots(
        self, arrays: Weights, tensors: Sequence[Mapping[str, Tensor]], names: Iterable[str]
    ) -> None:
        """Write the arrays of `slots` into tensors; raises ValueError unless names and shapes match."""
        lookups = [(name, self._slot_lookup(tensors, name)) for name in names]
        shapes = {f"{b.name}/{name}": tuple(b.read().shape) for b in self.trained for name, _ in lookups}
        check_slots(arrays, shapes)
        for b in self.trained:
            for name, lookup in lookups:
                b.write(torch.from_numpy(np.ascontiguousarray(arrays[f"{b.name}/{name}"])), lookup)

    def _slot_lookup(self, tensors: Sequence[Mapping[str, Tensor]], name: str) -> TensorLookup:
        pairs = zip(self.parameters.values(), tensors, strict=True)
        by_parameter = {id(parameter): slots[name] for parameter, slots in pairs}
        return lambda parameter: by_parameter[id(parameter)]


def build(network: Network, options: BuildOptions) -> Model:
    """Build the module of a network, in training mode. Its weights are undefined until `load`."""
    modules, bindings, _ = _chain(network.nodes, False, options)
    return Model(network, TorchNetwork(modules), tuple(bindings))


def to_numpy(tensor: Tensor) -> Float:
    """Copy the values of a tensor."""
    return np.array(tensor.cpu().numpy(), order="C")


def criterion(loss: Loss) -> Criterion:
    """Return the torch function of a loss, from logits, averaged over the batch (and targets)."""
    match loss:
        case "mse":
            return F.mse_loss
        case "binary_cross_entropy":
            return lambda outputs, y: F.binary_cross_entropy_with_logits(outputs[:, 0], y)
        case "cross_entropy":
            return F.cross_entropy
        case _:
            assert_never(loss)


def _chain(
    nodes: tuple[AnyNode, ...], channels_first: bool, options: BuildOptions
) -> tuple[list[nn.Module], list[WeightBinding], bool]:
    """Build consecutive layers: their modules, their bindings, and the order of axes of their output.

    `channels_first`, of the input and then of the output: the channels are the first axis of a sample rather
    than the last one.
    """
    modules: list[nn.Module] = []
    bindings: list[WeightBinding] = []
    for node in nodes:
        if isinstance(node, ResidualNode):
            block, block_bindings, channels_first = _block(node, channels_first, options)
            modules.append(block)
            bindings += block_bindings
            continue
        if node.is_identity:
            continue
        required = layers.wants_channels_first(node)
        if required is not None and required != channels_first:
            modules.append(_reorder(len(node.in_shape), required))
            channels_first = required
        layer = layers.build_layer(node, channels_first, options)
        if node.frozen:
            layer.module.requires_grad_(False)
        modules.append(layer.module)
        bindings += layer.bindings
        channels_first = channels_first and len(node.out_shape) > 1
    return modules, bindings, channels_first


def _block(
    node: ResidualNode, channels_first: bool, options: BuildOptions
) -> tuple[nn.Module, list[WeightBinding], bool]:
    body, bindings, body_first = _chain(node.body, channels_first, options)
    shortcut, shortcut_bindings, shortcut_first = _chain(node.shortcut, channels_first, options)
    if body_first != shortcut_first:
        shortcut.append(_reorder(len(node.out_shape), body_first))
    return Block(Chain(body), Chain(shortcut)), bindings + shortcut_bindings, body_first


def _reorder(rank: int, channels_first: bool) -> nn.Module:
    if rank == 1:
        return nn.Identity()
    return spatial.to_channels_first(rank) if channels_first else spatial.to_channels_last(rank)
