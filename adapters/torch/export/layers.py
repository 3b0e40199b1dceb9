"""Write the lines and the state of each layer kind, with torch's own modules and functions."""

from __future__ import annotations

from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from adapters.torch.export.writer import SourceWriter, numbers
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
    sinusoids,
)


def write_layer(writer: SourceWriter, node: Node, channels_first: bool, var: str) -> None:
    """Write a layer, applied to the variable `var`, whose channels are the first axis of a sample or not."""
    layer, shape = node.layer, node.in_shape
    axes = tuple(range(2, len(shape) + 1)) if channels_first else tuple(range(1, len(shape)))
    match layer:
        case Dense():
            bias = "" if layer.use_bias else ", bias=False"
            constructor = f"nn.Linear({shape[-1]}, {layer.units}{bias})"
            writer.apply_module(node, channels_first, var, constructor)
        case Activation():
            writer.add_step(f"{var} = {_activation(layer, var)}")
        case Dropout(rate=rate):
            writer.apply_module(node, channels_first, var, f"nn.Dropout({rate})")
        case Flatten():
            if node.masked:
                writer.add_step(f"{var} = {var}.masked_fill(~valid{_new_axes(len(shape) - 1)}, 0.0)")
            if len(shape) > 1:
                writer.add_step(f"{var} = {var}.flatten(1)")
        case Reshape():
            writer.add_step(f"{var} = {var}.reshape(-1, {numbers(node.out_shape)})")
        case Conv1D() | Conv2D():
            _write_convolution(writer, node, layer, channels_first, var)
        case Pool(mode=mode, size=size):
            name = {"max": "max_pool", "average": "avg_pool"}[mode]
            writer.add_step(f"{var} = F.{name}{len(shape) - 1}d({var}, {size})")
        case GlobalPool(mode=mode):
            writer.add_step(f"{var} = {_global_pool(mode, node.masked, axes, var)}")
        case Upsample(size=size):
            for axis in axes:
                writer.add_step(f"{var} = {var}.repeat_interleave({size}, {axis})")
        case SimpleRNN() | LSTM() | GRU():
            _write_recurrent(writer, node, layer, var)
        case Embedding():
            constructor = f"nn.Embedding({layer.vocabulary}, {layer.units})"
            writer.apply_module(node, channels_first, var, constructor)
        case Positions():
            _write_positions(writer, node, layer, var)
        case SelfAttention():
            _write_attention(writer, node, layer, var)
        case LayerNorm(epsilon=epsilon):
            writer.apply_module(node, channels_first, var, f"nn.LayerNorm({shape[-1]}, eps={epsilon})")
        case BatchNorm():
            _write_batch_norm(writer, node, layer, var)
        case _:
            assert_never(layer)


def _write_convolution(
    writer: SourceWriter, node: Node, layer: Conv1D | Conv2D, channels_first: bool, var: str
) -> None:
    rank, size = len(node.in_shape) - 1, layer.kernel_size
    options = f", stride={layer.strides}" if layer.strides > 1 else ""
    if layer.padding == "same" and size > 1:
        options += f", padding={size // 2}" if size % 2 else ', padding="same"'
    options += "" if layer.use_bias else ", bias=False"
    if layer.padding == "causal" and size > 1:
        writer.add_step(
            f"{var} = F.pad({var}, ({size - 1}, 0))  # in front, so that no step depends on a later one"
        )
    constructor = f"nn.Conv{rank}d({node.in_shape[-1]}, {layer.filters}, {size}{options})"
    writer.apply_module(node, channels_first, var, constructor)


def _write_recurrent(writer: SourceWriter, node: Node, layer: SimpleRNN | LSTM | GRU, var: str) -> None:
    name, sequence = writer.unique_name(node), layer.returns == "sequence"
    fused_directions = layer.bidirectional and not node.masked
    kind = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}[layer.kind]
    options = "batch_first=True" + (", bidirectional=True" if fused_directions else "")
    constructor = f"nn.{kind}({node.in_shape[-1]}, {layer.units}, {options})"
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in writer.native_state(node, False).items():
        cells, _, weight = key.partition(".")
        states.setdefault(cells, {})[weight] = tensor
    writer.add_module(name, constructor, states["forward_cells"])
    if fused_directions and not sequence:
        units = layer.units
        writer.add_step(f"{var} = self.{name}({var})[0]")
        writer.add_step(f"{var} = torch.cat(({var}[:, -1, :{units}], {var}[:, 0, {units}:]), -1)")
    elif layer.bidirectional and node.masked:
        writer.add_module(f"{name}_back", constructor, states["backward_cells"])
        writer.add_step(f"backward = self.{name}_back(reverse_valid({var}, lengths))[0]")
        writer.add_step(f"{var} = self.{name}({var})[0]")
        all_steps = f"{var}, reverse_valid(backward, lengths)"
        last_steps = f"last_valid({var}, lengths), last_valid(backward, lengths)"
        writer.add_step(f"{var} = torch.cat(({all_steps if sequence else last_steps}), -1)")
    elif sequence:
        writer.add_step(f"{var} = self.{name}({var})[0]")
    elif node.masked:
        writer.add_step(f"{var} = last_valid(self.{name}({var})[0], lengths)")
    else:
        writer.add_step(f"{var} = self.{name}({var})[0][:, -1]")


def _write_positions(writer: SourceWriter, node: Node, layer: Positions, var: str) -> None:
    name = writer.unique_name(node)
    if layer.encoding == "sinusoidal":
        writer.add_buffer(name, np.array(sinusoids(node.in_shape)), "zeros")
    else:
        table = writer.native_state(node, False)["table"]
        writer.fields.append(f"self.{name} = nn.Parameter(torch.zeros({numbers(node.in_shape)}))")
        writer.state[name] = table.clone()
    writer.add_step(f"{var} = {var} + self.{name}")


def _write_attention(writer: SourceWriter, node: Node, layer: SelfAttention, var: str) -> None:
    name, width = writer.unique_name(node), node.in_shape[-1]
    native = writer.native_state(node, False)
    key, query, value = native["projection"].chunk(3)
    query_bias, value_bias = native["bias"].chunk(2)
    state = {
        "in_proj_weight": torch.cat((query, key, value)),
        "in_proj_bias": torch.cat((query_bias, torch.zeros_like(query_bias), value_bias)),
        "out_proj.weight": native["output.weight"],
        "out_proj.bias": native["output.bias"],
    }
    writer.add_module(name, f"nn.MultiheadAttention({width}, {layer.heads}, batch_first=True)", state)
    options = "need_weights=False"
    if layer.causal:
        # the padding follows every valid step, so this mask hides it too
        steps = node.in_shape[0]
        ones = f"torch.ones({steps}, {steps}, dtype=torch.bool, device={var}.device)"
        writer.add_step(f"causal_mask = {ones}.triu(1)")
        options += ", attn_mask=causal_mask"
    elif node.masked:
        options += ", key_padding_mask=~valid"
    writer.add_step(f"{var} = self.{name}({var}, {var}, {var}, {options})[0]")


def _write_batch_norm(writer: SourceWriter, node: Node, layer: BatchNorm, var: str) -> None:
    name, rank = writer.unique_name(node), max(1, len(node.in_shape) - 1)
    native = writer.native_state(node, len(node.in_shape) > 1)
    state = {
        "weight": native["gamma"],
        "bias": native["beta"],
        "running_mean": native["moving_mean"],
        "running_var": native["moving_variance"],
        "num_batches_tracked": torch.tensor(0),
    }
    momentum = round(1.0 - layer.momentum, 12)
    arguments = f"{node.in_shape[-1]}, eps={layer.epsilon}, momentum={momentum}"
    writer.add_module(name, f"nn.BatchNorm{rank}d({arguments})", state)
    writer.add_step(f"{var} = self.{name}({var})")


def _global_pool(mode: str, masked: bool, axes: tuple[int, ...], var: str) -> str:
    axes_text = str(axes[0]) if len(axes) == 1 else f"({numbers(axes)})"
    match mode, masked:
        case "average", False:
            return f"{var}.mean({axes_text})"
        case "average", True:
            return f"{var}.masked_fill(~valid[:, :, None], 0.0).sum(1) / lengths[:, None]"
        case _, False:
            return f"{var}.amax({axes_text})"
        case _:
            return f'{var}.masked_fill(~valid[:, :, None], float("-inf")).amax(1)'


def _activation(layer: Activation, var: str) -> str:
    match layer.function:
        case "linear":
            return var
        case "relu" | "gelu" | "silu":
            return f"F.{layer.function}({var})"
        case "leaky_relu":
            return f"F.leaky_relu({var}, {layer.slope})"
        case "sigmoid" | "tanh":
            return f"torch.{layer.function}({var})"
        case "softmax":
            return f"F.softmax({var}, dim=-1)"
        case _:
            assert_never(layer.function)


def _new_axes(count: int) -> str:
    return "[:, :" + ", None" * count + "]"
