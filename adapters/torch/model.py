"""From a network to an `nn.Module`: the walk through its layers and residual blocks.

The order of axes is decided here. Samples arrive and leave in the canonical order (height, width, channels);
layers that slide over places take torch's order (channels first), so a permutation, which is a view, goes in
where a layer wants the other order than the one that it is given, and nowhere else. Flatten is therefore in
the canonical order as well.
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
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.torch import layers, spatial
from adapters.torch.layers import BuildOptions
from adapters.torch.weight_binding import Of, Padding, WeightBinding
from harness.core.adapter import Float, Loss, Weights
from harness.core.network import AnyNode, Network, ResidualNode
from harness.core.training.training_state import check_slots

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Outputs `[batch, n]` and targets of a batch to the mean loss, a scalar tensor."""


class Chain(nn.Module):
    """Modules one after the other; those that look at the padding of a batch get it."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(modules)
        takes = (*layers.TAKES_PADDING, Chain, Block)
        self._calls = [(module, isinstance(module, takes)) for module in self.layers]

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        for module, takes_padding in self._calls:
            x = module(x, padding) if takes_padding else module(x)
        return x


class Block(nn.Module):
    """shortcut(x) + body(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        result: Tensor = self.shortcut(x, padding) + self.body(x, padding)
        return result


class TorchNetwork(Chain):
    """A whole network, from a batch `[batch, *sample]` and, of padded sequences, its lengths `[batch]`.

    In `mixed` precision torch's autocast picks the dtype of each operation; what comes out is float32 again,
    so that losses are.
    """

    mixed = False

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:  # type: ignore[override]
        padding = None
        if lengths is not None:
            padding = Padding(lengths, torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1))
        if not self.mixed:
            return super().forward(x, padding)
        # each weight is used once a step: a cache of what was cast has nothing to give
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            return super().forward(x, padding).float()


@dataclass(frozen=True)
class Model:
    """A module and where its canonical weights are; `bound` is in the order of the network's parameters."""

    network: Network
    module: TorchNetwork
    bound: tuple[WeightBinding, ...]

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by the module's own names."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """What changes while training without being trained: running statistics; constants are not in it."""
        kept = self.module.state_dict().keys()
        return {name: buffer for name, buffer in self.module.named_buffers() if name in kept}

    def load(self, weights: Weights) -> None:
        """Take canonical weights; raises ValueError unless names and shapes are exactly the model's."""
        expected = {b.name: tuple(b.read().shape) for b in self.bound}
        given = {name: array.shape for name, array in weights.items()}
        if given != expected:
            raise ValueError(f"the weights are {given}, the network has {expected}")
        with torch.no_grad():
            for b in self.bound:
                b.write(torch.from_numpy(np.ascontiguousarray(weights[b.name])))

    def weights(self) -> dict[str, Float]:
        """The canonical weights, copied."""
        return {b.name: array(b.read()) for b in self.bound}

    @cached_property
    def trained(self) -> tuple[WeightBinding, ...]:
        """The canonical weights that are trained, in the order of `bound`."""
        names = set(self.network.trained())
        return tuple(b for b in self.bound if b.name in names)

    def slots(self, kept: Sequence[Mapping[str, Tensor]], names: Iterable[str]) -> dict[str, Float]:
        """What an optimizer keeps, in the canonical layout, by `<weight>/<slot>`.

        `kept` has tensors by the `names` of the slots for each of `parameters`, in their order and shapes.
        """
        found = [(name, self._of(kept, name)) for name in names]
        return {f"{b.name}/{name}": array(b.read(of)) for b in self.trained for name, of in found}

    def load_slots(self, given: Weights, kept: Sequence[Mapping[str, Tensor]], names: Iterable[str]) -> None:
        """Write what `slots` gave into tensors; raises ValueError unless names and shapes are the model's."""
        found = [(name, self._of(kept, name)) for name in names]
        shapes = {f"{b.name}/{name}": tuple(b.read().shape) for b in self.trained for name, _ in found}
        check_slots(given, shapes)
        for b in self.trained:
            for name, of in found:
                b.write(torch.from_numpy(np.ascontiguousarray(given[f"{b.name}/{name}"])), of)

    def _of(self, kept: Sequence[Mapping[str, Tensor]], name: str) -> Of:
        each = zip(self.parameters.values(), kept, strict=True)
        held = {id(parameter): of_parameter[name] for parameter, of_parameter in each}
        return lambda holder: held[id(holder)]


def build(network: Network, setting: BuildOptions) -> Model:
    """The module of a network, in training mode. Its weights mean nothing until `load`."""
    modules, bound, _ = _chain(network.nodes, False, setting)
    return Model(network, TorchNetwork(modules), tuple(bound))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the names of the operations that torch's dispatcher is asked for, as `mkldnn_rnn_layer`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Seen:
    """What is seen of a network at work: the kinds of its layers with weights whose outputs are float32,
    `outputs` for its own, and torch's operations."""

    float32: tuple[str, ...]
    operations: tuple[str, ...]


def look_into(made: Model, device: torch.device) -> Seen:
    """Send a row of zeros through in evaluation mode, which draws no masks and changes no statistics."""
    found: set[str] = set()
    weighty = [module for module in made.module.modules() if any(True for _ in module.parameters(False))]

    def look(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        if outputs[0].dtype == torch.float32:
            found.add(type(module).__name__)

    given = made.network.input
    dtype = next(iter(made.module.parameters())).dtype
    x = torch.zeros(1, *given.shape, dtype=torch.int64 if given.vocabulary else dtype, device=device)
    lengths = (torch.ones(1, dtype=torch.int64, device=device),) if given.lengths else ()
    hooks = [module.register_forward_hook(look) for module in weighty]
    try:
        made.module.eval()
        with _Operations() as operations:  # gradients are asked for, as in training: some kernels have none
            made.module(x, *lengths)
    finally:
        made.module.train()
        for hook in hooks:
            hook.remove()
    return Seen(("outputs", *sorted(found)), tuple(sorted(operations.names)))


def array(tensor: Tensor) -> Float:
    """The values of a tensor, copied."""
    return np.array(tensor.cpu().numpy(), order="C")


def criterion(loss: Loss) -> Criterion:
    """The torch function of a loss, from logits, averaged over the batch (and targets)."""
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
    nodes: tuple[AnyNode, ...], first: bool, setting: BuildOptions
) -> tuple[list[nn.Module], list[WeightBinding], bool]:
    """Modules and weights of layers in a row; `first`, of the input and then of the output, says whether the
    channels are the first axis of a sample rather than the last one."""
    modules: list[nn.Module] = []
    bound: list[WeightBinding] = []
    for node in nodes:
        if isinstance(node, ResidualNode):
            block, of_block, first = _block(node, first, setting)
            modules.append(block)
            bound += of_block
            continue
        if node.does_nothing:
            continue
        wanted = layers.wants_channels_first(node)
        if wanted is not None and wanted != first:
            modules.append(_reorder(len(node.in_shape), wanted))
            first = wanted
        built = layers.layer(node, first, setting)
        if node.frozen:
            built.module.requires_grad_(False)
        modules.append(built.module)
        bound += built.bound
        first = first and len(node.out_shape) > 1
    return modules, bound, first


def _block(
    node: ResidualNode, first: bool, setting: BuildOptions
) -> tuple[nn.Module, list[WeightBinding], bool]:
    body, bound, body_first = _chain(node.body, first, setting)
    shortcut, of_shortcut, shortcut_first = _chain(node.shortcut, first, setting)
    if body_first != shortcut_first:
        shortcut.append(_reorder(len(node.out_shape), body_first))
    return Block(Chain(body), Chain(shortcut)), bound + of_shortcut, body_first


def _reorder(rank: int, first: bool) -> nn.Module:
    if rank == 1:
        return nn.Identity()
    return spatial.channels_first(rank) if first else spatial.channels_last(rank)
