"""Build the module of each layer kind, with bindings of its canonical weights.

There is one case per kind. A module is torch's own wherever torch has an equivalent one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor, nn

from adapters.torch import attention, spatial
from adapters.torch.attention import Attention
from adapters.torch.recurrent import RecurrentLayer, recurrent
from adapters.torch.spatial import MaskedMaxPool, MaskedMeanPool
from adapters.torch.weight_binding import BuiltLayer, Padding, WeightBinding, bind
from harness.core.network import (
    GRU,
    LSTM,
    Activation,
    BatchNorm,
    Conv1D,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalPool,
    LayerNorm,
    Node,
    Pool,
    Positions,
    Reshape,
    SelfAttention,
    SimpleRNN,
    Upsample,
)


class MaskedFlatten(nn.Module):
    """Flattens a sample to one axis; padded steps become zeros."""

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        shape = (*padding.valid.shape, *[1] * (x.dim() - 2))
        return x.masked_fill(~padding.valid.view(shape), 0.0).flatten(1)


class ReshapeSample(nn.Module):
    """Reshapes each sample."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape)


NEEDS_PADDING = (RecurrentLayer, Attention, MaskedMeanPool, MaskedMaxPool, MaskedFlatten)
"""Modules whose second argument is the batch's `Padding` or None."""


@dataclass(frozen=True)
class BuildOptions:
    """Options for building layers; `unrolled`: unroll recurrent layers, for torch.compile."""

    dtype: torch.dtype
    device: torch.device
    unrolled: bool


def wants_channels_first(node: Node) -> bool | None:
    """Return whether a layer's module needs torch's order of axes; None if it accepts either order."""
    match node.layer:
        case Conv1D() | Conv2D() | Pool() | Upsample() | BatchNorm():
            return len(node.in_shape) > 1
        case GlobalPool():
            return False if node.masked else None
        case Activation(function=function):
            return False if function == "softmax" else None
        case Dropout():
            return None
        case _:
            return False


def build_layer(node: Node, channels_first: bool, options: BuildOptions) -> BuiltLayer:
    """Build the module of a layer; `channels_first` is the order of axes of its input."""
    dtype, device = options.dtype, options.device
    match node.layer:
        case Dense():
            return _dense(node, node.layer, options)
        case Activation():
            return BuiltLayer(_activation(node.layer))
        case Dropout(rate=rate):
            return BuiltLayer(nn.Dropout(rate))
        case Flatten():
            return BuiltLayer(MaskedFlatten() if node.masked else nn.Flatten())
        case Reshape():
            return BuiltLayer(ReshapeSample(node.out_shape))
        case Conv1D() | Conv2D():
            return spatial.convolution(node, node.layer, dtype, device)
        case Pool():
            return spatial.pool(node, node.layer)
        case GlobalPool():
            return spatial.global_pool(node, node.layer, channels_first)
        case Upsample():
            return spatial.upsample(node.layer)
        case SimpleRNN() | LSTM() | GRU():
            return recurrent(node, node.layer, options.unrolled, dtype, device)
        case Embedding():
            return attention.embedding(node, node.layer, dtype, device)
        case Positions():
            return attention.positions(node, node.layer, dtype, device)
        case SelfAttention():
            return attention.self_attention(node, node.layer, dtype, device)
        case LayerNorm():
            return attention.layer_norm(node, node.layer, dtype, device)
        case BatchNorm():
            return spatial.batch_norm(node, node.layer, dtype, device)
        case _:
            assert_never(node.layer)


def _dense(node: Node, layer: Dense, options: BuildOptions) -> BuiltLayer:
    """Build a dense layer: torch's kernels are (out, in), canonical ones (in, out)."""
    names = node.weight_names()
    module = nn.Linear(
        node.in_shape[-1], layer.units, layer.use_bias, device=options.device, dtype=options.dtype
    )
    bias: tuple[WeightBinding, ...] = (bind(names["bias"], module.bias),) if layer.use_bias else ()
    return BuiltLayer(module, (bind(names["kernel"], module.weight, Tensor.t, Tensor.t), *bias))


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
