"""Layers of transformers: embedding, positions, self-attention, layer normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.torch.weight_binding import BuiltLayer, Padding, WeightBinding, bind
from harness.core.network import Embedding, LayerNorm, Node, Positions, SelfAttention, sinusoids


class AddTable(nn.Module):
    """Adds a table `[steps, features]`, either a parameter or constants, to each sample."""

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
    """Multi-head self-attention with torch's fused kernel; one matrix product projects to key, query, value.

    The rows of the projection are in the order key, query, value. The key has no bias, so the biases of query
    and value form one array, and zeros are prepended to it.
    """

    def __init__(self, width: int, layer: SelfAttention, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.heads, self.causal = layer.heads, layer.causal
        self.projection = nn.Parameter(torch.zeros(3 * width, width, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(2 * width, dtype=dtype, device=device))
        self.output = nn.Linear(width, width, dtype=dtype, device=device)

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        batch, steps, width = x.shape
        projected = F.linear(x, self.projection, F.pad(self.bias, (width, 0)))
        by_head = projected.view(batch, steps, 3, self.heads, width // self.heads)
        key, query, value = by_head.permute(2, 0, 3, 1, 4).unbind(0)
        # a causal mask hides the padding too, since padding follows every valid step
        needs_mask = padding is not None and not self.causal
        mask = padding.valid[:, None, None, :] if padding is not None and needs_mask else None
        attended = F.scaled_dot_product_attention(query, key, value, mask, is_causal=self.causal)
        result: Tensor = self.output(attended.transpose(1, 2).reshape(batch, steps, width))
        return result


def embedding(node: Node, layer: Embedding, dtype: torch.dtype, device: torch.device) -> BuiltLayer:
    """Build an embedding; its input is int64 ids."""
    module = nn.Embedding(layer.vocabulary, layer.units, dtype=dtype, device=device)
    return BuiltLayer(module, (bind(node.weight_names()["table"], module.weight),))


def positions(node: Node, layer: Positions, dtype: torch.dtype, device: torch.device) -> BuiltLayer:
    """Build positions: learned ones are a weight, sinusoidal ones a constant."""
    if layer.encoding == "learned":
        module = AddTable(torch.zeros(node.in_shape, dtype=dtype, device=device), learned=True)
        return BuiltLayer(module, (bind(node.weight_names()["table"], module.table),))
    table = torch.tensor(sinusoids(node.in_shape), dtype=dtype, device=device)
    return BuiltLayer(AddTable(table, learned=False))


def self_attention(node: Node, layer: SelfAttention, dtype: torch.dtype, device: torch.device) -> BuiltLayer:
    """Build self-attention.

    Canonical kernels are (d, heads, k) and, for the output, (heads, k, d); torch's are (out, in).
    """
    width, heads, names = node.in_shape[-1], layer.heads, node.weight_names()
    module = Attention(width, layer, dtype, device)

    def to_native(kernel: Tensor) -> Tensor:
        return kernel.reshape(width, width).t()

    def projection_to_canonical(weight: Tensor) -> Tensor:
        return weight.t().reshape(width, heads, -1)

    def output_to_canonical(weight: Tensor) -> Tensor:
        return weight.t().reshape(heads, -1, width)

    def kernel(name: str, index: int) -> WeightBinding:
        return bind(
            names[name],
            module.projection,
            to_native,
            projection_to_canonical,
            lambda tensor: tensor.chunk(3)[index],
        )

    def bias(name: str, index: int) -> WeightBinding:
        return bind(names[name], module.bias, part=lambda tensor: tensor.chunk(2)[index].view(heads, -1))

    return BuiltLayer(
        module,
        (
            kernel("query_kernel", 1),
            bias("query_bias", 0),
            kernel("key_kernel", 0),
            kernel("value_kernel", 2),
            bias("value_bias", 1),
            bind(names["output_kernel"], module.output.weight, to_native, output_to_canonical),
            bind(names["output_bias"], module.output.bias),
        ),
    )


def layer_norm(node: Node, layer: LayerNorm, dtype: torch.dtype, device: torch.device) -> BuiltLayer:
    """Build a layer normalisation over the last axis."""
    names = node.weight_names()
    module = nn.LayerNorm(node.in_shape[-1], layer.epsilon, dtype=dtype, device=device)
    return BuiltLayer(module, (bind(names["gamma"], module.weight), bind(names["beta"], module.bias)))
