"""From a network to an `nn.Module`, and its weights from and to the canonical layout.

One case per layer kind, which holds both directions of the mapping: torch keeps a dense kernel as
`(out, in)`. Modules are torch's own wherever it has one that computes what the kind says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.adapter import Float, Loss, Weights
from harness.spec import Activation, Dense, Dropout, Flatten, Network, Node

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Outputs `[batch, n]` and targets of a batch to the mean loss, a scalar tensor."""

Layout = Callable[[Tensor], Tensor]


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Bound:
    """A canonical weight, the tensor that holds it, and the mapping between their layouts."""

    name: str
    tensor: Tensor
    to_native: Layout = _as_is
    to_canonical: Layout = _as_is


@dataclass(frozen=True)
class Model:
    """A module and where its canonical weights are; `bound` is in the order of the network's parameters."""

    module: nn.Sequential
    bound: tuple[Bound, ...]

    def load(self, weights: Weights) -> None:
        """Take canonical weights; raises ValueError unless names and shapes are exactly the model's."""
        expected = {b.name: tuple(b.to_canonical(b.tensor).shape) for b in self.bound}
        given = {name: array.shape for name, array in weights.items()}
        if given != expected:
            raise ValueError(f"the weights are {given}, the network has {expected}")
        with torch.no_grad():
            for b in self.bound:
                b.tensor.copy_(b.to_native(torch.from_numpy(np.ascontiguousarray(weights[b.name]))))

    def weights(self) -> dict[str, Float]:
        """The canonical weights, copied."""
        return {b.name: np.array(b.to_canonical(b.tensor.detach()).cpu().numpy()) for b in self.bound}


def build(network: Network, dtype: torch.dtype, device: torch.device) -> Model:
    """The module of a network, in training mode. Its weights mean nothing until `load`."""
    module = nn.Sequential()
    bound: list[Bound] = []
    for node in network.nodes:
        layer, of_layer = _layer(node, dtype, device)
        module.append(layer)
        bound += of_layer
    return Model(module, tuple(bound))


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


def _layer(node: Node, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, list[Bound]]:
    names = node.weight_names()
    match node.layer:
        case Dense(units=units, use_bias=use_bias):
            linear = nn.Linear(node.in_shape[-1], units, use_bias, device=device, dtype=dtype)
            bound = [Bound(names["kernel"], linear.weight, Tensor.t, Tensor.t)]
            return linear, bound + ([Bound(names["bias"], linear.bias)] if use_bias else [])
        case Activation():
            return _activation(node.layer), []
        case Dropout(rate=rate):
            return nn.Dropout(rate), []
        case Flatten():
            return nn.Flatten(), []
        case _:
            assert_never(node.layer)


def _activation(layer: Activation) -> nn.Module:
    match layer.function:
        case "linear":
            return nn.Identity()
        case "relu":
            return nn.ReLU()
        case "leaky_relu":
            return nn.LeakyReLU(layer.slope)
        case "sigmoid":
            return nn.Sigmoid()
        case "tanh":
            return nn.Tanh()
        case "gelu":
            return nn.GELU(approximate="none")
        case "silu":
            return nn.SiLU()
        case "softmax":
            return nn.Softmax(dim=-1)
        case _:
            assert_never(layer.function)
