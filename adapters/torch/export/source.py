"""Convert a network to the source of a plain PyTorch module, as a person would write it, and its state.

The source follows `adapters.torch.model`: samples have the canonical order of axes (height, width, channels),
and a permutation is inserted where a layer needs torch's. The difference is that all modules are torch's own:
nn.MultiheadAttention with a zero key bias, nn.BatchNorm2d, nn.LSTM, one per direction where rows are padded.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from adapters.torch import layers as adapter_layers
from adapters.torch.export.layers import write_layer
from adapters.torch.export.template import render
from adapters.torch.export.writer import SourceWriter, numbers
from adapters.torch.layers import BuildOptions
from harness.core.export.exporter import Export
from harness.core.network import AnyNode, ResidualNode


def module_source(export: Export) -> tuple[str, dict[str, Tensor]]:
    """Return the module's source and its state."""
    writer = SourceWriter(export.weights, BuildOptions(dtype(export), torch.device("cpu"), unrolled=False))
    if export.inputs is not None:
        writer.add_scaling("", export.inputs, "of the training split, to standardise x")
        writer.add_step("x = (x - self.mean) / self.scale")
    _write_chain(writer, export.network.nodes, False, "x")
    if export.outputs is not None:
        writer.add_scaling("target_", export.outputs, "from the units of training to those of the data")
        writer.add_step("x = x * self.target_scale + self.target_mean")
    if any(re.search(r"\bvalid\b", step) for step in writer.steps):
        writer.steps.insert(0, "valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]")
    return render(export, writer.fields, writer.steps), writer.state


def dtype(export: Export) -> torch.dtype:
    """Return the dtype of the module's weights."""
    return {"float32": torch.float32, "float64": torch.float64}[export.precision]


def _write_chain(writer: SourceWriter, nodes: tuple[AnyNode, ...], channels_first: bool, var: str) -> bool:
    """Write consecutive layers, applied to the variable `var`; return the order of axes of their output.

    `channels_first`: the channels are the first axis of a sample, as in `adapters.torch.model`.
    """
    for node in nodes:
        if isinstance(node, ResidualNode):
            channels_first = _write_block(writer, node, channels_first, var)
            continue
        if node.is_identity:
            continue
        required = adapter_layers.wants_channels_first(node)
        if required is not None and required != channels_first:
            _write_permutation(writer, len(node.in_shape), required, var)
            channels_first = required
        write_layer(writer, node, channels_first, var)
        channels_first = channels_first and len(node.out_shape) > 1
    return channels_first


def _write_block(writer: SourceWriter, node: ResidualNode, channels_first: bool, var: str) -> bool:
    writer.blocks += 1
    shortcut = f"shortcut_{writer.blocks}"
    writer.add_step(f"{shortcut} = {var}")
    body_first = _write_chain(writer, node.body, channels_first, var)
    if _write_chain(writer, node.shortcut, channels_first, shortcut) != body_first:
        _write_permutation(writer, len(node.out_shape), body_first, shortcut)
    writer.add_step(f"{var} = {shortcut} + {var}")
    return body_first


def _write_permutation(writer: SourceWriter, rank: int, channels_first: bool, var: str) -> None:
    if rank > 1:
        axes = (0, rank, *range(1, rank)) if channels_first else (0, *range(2, rank + 1), 1)
        order = "first" if channels_first else "last"
        writer.add_step(f"{var} = {var}.permute({numbers(axes)})  # channels {order}")
