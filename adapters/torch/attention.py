"""Layers of transformers: embedding, positions, self-attention, layer normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.torch.weight_binding import BuiltLayer, Padding, WeightBinding, bind
from harness.core.network import Embedding, LayerNorm, Node, Positions, SelfAttention, sinusoids


class AddTable(nn.Module):
    """Adds a table `[steps, features]` to each sample: a parameter, or constants."""

    table: Tensor

    def __init__(self, table: Tensor, learned: bool) -> None:
        super().__init__()
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Attention(nn.Module):
    """Multi-head self-attention by torch's fused kernel; one matrix product projects to key, query and value.

    The projection's rows are in the order key, query, value, so that the biases of the latter two are one
    array that zeros go before: the key has none.
    """

    def __init__(self, width: int, layer: SelfAttention, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.width, self.heads, self.causal = width, layer.heads, layer.causal
        self.into = nn.Parameter(torch.zeros(3 * width, width, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(2 * width, dtype=dtype, device=device))
        self.output = nn.Linear(width, width, dtype=dtype, device=device)

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        batch, steps, width = x.shape
        projected = F.linear(x, self.into, F.pad(self.bias, (width, 0)))
        split = projected.view(batch, steps, 3, self.heads, width // self.heads)
        key, query, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        # a causal mask hides the padding too: it lies behind every valid step
        hidden = padding is not None and not self.causal
        mask = padding.valid[:, None, None, :] if padding is not None and hidden else None
        seen = F.scaled_dot_product_attention(query, key, value, mask, is_causal=self.causal)
        result: Tensor = self.output(seen.transpose(1, 2).reshape(batch, steps, width))
        return result


def embedding(node: Node, layer: Embedding, dtype: torch.dtype, device: torch.device) -> BuiltLayer:
    """Takes int64 ids."""
    made = nn.Embedding(layer.vocabulary, layer.units, dtype=dtype, device=device)
    return BuiltLayer(made, (bind(node.weight_names()["table"], made.weight),))


def positions(node: Node, layer: Positions, dtype: torch.dtype, device: torch.device) -> BuiltLayer:
    """Learned ones are a weight; sinusoidal ones a constant."""
    learned = layer.encoding == "learned"
    if learned:
        made = AddTable(torch.zeros(node.in_shape, dtype=dtype, device=device), learned)
        return BuiltLayer(made, (bind(node.weight_names()["table"], made.table),))
    return BuiltLayer(AddTable(torch.tensor(sinusoids(node.in_shape), dtype=dtype, device=device), learned))


def self_attention(node: Node, layer: SelfAttention, dtype: torch.dtype, device: torch.device) -> BuiltLayer:
    """Canonical kernels are (d, heads, k) and, for the output, (heads, k, d); torch has (out, in)."""
    width, heads, names = node.in_shape[-1], layer.heads, node.weight_names()
    made = Attention(width, layer, dtype, device)

    def native(kernel: Tensor) -> Tensor:
        return kernel.reshape(width, width).t()

    def into(weight: Tensor) -> Tensor:
        return weight.t().reshape(width, heads, -1)

    def out_of(weight: Tensor) -> Tensor:
        return weight.t().reshape(heads, -1, width)

    def kernel(name: str, index: int) -> WeightBinding:
        return bind(names[name], made.into, native, into, lambda tensor: tensor.chunk(3)[index])

    def bias(name: str, index: int) -> WeightBinding:
        return bind(names[name], made.bias, part=lambda tensor: tensor.chunk(2)[index].view(heads, -1))

    return BuiltLayer(
        made,
        (
            kernel("query_kernel", 1),
            bias("query_bias", 0),
            kernel("key_kernel", 0),
            kernel("value_kernel", 2),
            bias("value_bias", 1),
            bind(names["output_kernel"], made.output.weight, native, out_of),
            bind(names["output_bias"], made.output.bias),
        ),
    )


def layer_norm(node: Node, layer: LayerNorm, dtype: torch.dtype, device: torch.device) -> BuiltLayer:
    """Over the last axis."""
    made, names = (
        nn.LayerNorm(node.in_shape[-1], layer.epsilon, dtype=dtype, device=device),
        node.weight_names(),
    )
    return BuiltLayer(made, (bind(names["gamma"], made.weight), bind(names["beta"], made.bias)))
