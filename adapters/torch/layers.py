"""One case per layer kind: its module, and where its canonical weights are in it.

Modules are torch's own wherever it has one that computes what the kind says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor, nn

from adapters.torch import attention, spatial
from adapters.torch.attention import Attention
from adapters.torch.recurrent import RecurrentLayer, recurrent
from adapters.torch.spatial import LargestOfValid, MeanOfValid
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


class FlattenValid(nn.Module):
    """All axes of a sample into one; padded steps come out as zeros."""

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        shape = (*padding.valid.shape, *[1] * (x.dim() - 2))
        return x.masked_fill(~padding.valid.view(shape), 0.0).flatten(1)


TAKES_PADDING = (RecurrentLayer, Attention, MeanOfValid, LargestOfValid, FlattenValid)
"""Modules that are called with the batch's `Padding`, or None, beside the tensor."""


@dataclass(frozen=True)
class BuildOptions:
    """How layers are made; `unrolled`: recurrent ones step by step, for torch.compile."""

    dtype: torch.dtype
    device: torch.device
    unrolled: bool


def wants_channels_first(node: Node) -> bool | None:
    """Whether a layer's module takes torch's order of axes; None if any order will do."""
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


def layer(node: Node, first: bool, setting: BuildOptions) -> BuiltLayer:
    """The module of a layer; `first` says whether it gets its input with the channels first."""
    dtype, device = setting.dtype, setting.device
    match node.layer:
        case Dense():
            return _dense(node, node.layer, setting)
        case Activation():
            return BuiltLayer(_activation(node.layer))
        case Dropout(rate=rate):
            return BuiltLayer(nn.Dropout(rate))
        case Flatten():
            return BuiltLayer(FlattenValid() if node.masked else nn.Flatten())
        case Reshape():
            return BuiltLayer(ReshapeSample(node.out_shape))
        case Conv1D() | Conv2D():
            return spatial.convolution(node, node.layer, dtype, device)
        case Pool():
            return spatial.pool(node, node.layer)
        case GlobalPool():
            return spatial.global_pool(node, node.layer, first)
        case Upsample():
            return spatial.upsample(node.layer)
        case SimpleRNN() | LSTM() | GRU():
            return recurrent(node, node.layer, setting.unrolled, dtype, device)
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


class ReshapeSample(nn.Module):
    """The same numbers of each sample in another shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape)


def _dense(node: Node, layer: Dense, setting: BuildOptions) -> BuiltLayer:
    """torch keeps a kernel as (out, in)."""
    names = node.weight_names()
    where = {"device": setting.device, "dtype": setting.dtype}
    made = nn.Linear(node.in_shape[-1], layer.units, layer.use_bias, **where)
    bias: tuple[WeightBinding, ...] = (bind(names["bias"], made.bias),) if layer.use_bias else ()
    return BuiltLayer(made, (bind(names["kernel"], made.weight, Tensor.t, Tensor.t), *bias))


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
