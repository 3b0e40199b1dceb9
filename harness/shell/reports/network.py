"""The layers of a network with shapes, parameters and operations, as a table or as JSON (`evenbench
show`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from harness.core.network import AnyNode, Network, Node, ResidualNode
from harness.shell.reports.tables import plain_table


@dataclass(frozen=True)
class LayerRow:
    """One layer: its path (the prefix of its weights' names), kind, settings, output shape and numbers."""

    path: str
    kind: str
    settings: str
    output: tuple[int, ...]
    parameters: int
    flops: int
    depth: int


def layer_rows(network: Network) -> list[LayerRow]:
    """List the layers in order. A residual block has its own row; its layers are one level deeper."""
    return list(_rows(network.nodes, 0))


def as_json(title: str, network: Network) -> str:
    """Format the layers as JSON, with totals."""
    rows = [asdict(row) for row in layer_rows(network)]
    total = {"parameters": network.size(), "flops": network.flops(), "input": list(network.input.shape)}
    return json.dumps({"network": title, **total, "layers": rows}, indent=1)


def print_table(title: str, network: Network, console: Console) -> None:
    """Print the layers as a table, with totals."""
    table = plain_table(title)
    for name in ("place", "layer", "settings", "output"):
        table.add_column(name)
    for name in ("parameters", "FLOPs"):
        table.add_column(name, justify="right")
    table.add_row("", "input", input_text(network), shape_text(network.input.shape), "", "")
    for row in layer_rows(network):
        kind = "  " * row.depth + row.kind
        numbers = (f"{row.parameters:,}" if row.parameters else "", f"{row.flops:,}" if row.flops else "")
        table.add_row(row.path, kind, row.settings, shape_text(row.output), *numbers)
    table.add_section()
    table.add_row("", "total", "", "", f"{network.size():,}", f"{network.flops():,}")
    console.print(table)
    console.print(
        "FLOPs are of one forward pass of one sample; a training step takes about three times as many."
    )


def input_text(network: Network) -> str:
    """Describe what the shape of the input does not say."""
    vocabulary = network.input.vocabulary
    texts = [f"token ids below {vocabulary}"] if vocabulary else []
    return ", ".join([*texts, *(["unequal lengths"] if network.input.lengths else [])])


def shape_text(shape: tuple[int, ...]) -> str:
    """Format a shape, for example `8×8×16`."""
    return "×".join(map(str, shape))


def is_block(row: LayerRow) -> bool:
    """Whether the row is a residual block."""
    return row.kind.partition(" ")[0] == "residual"


def _rows(nodes: tuple[AnyNode, ...], depth: int) -> Iterator[LayerRow]:
    for node in nodes:
        if isinstance(node, ResidualNode):
            kind = "residual" + _quoted_name(node)
            yield LayerRow(node.path, kind, _residual_text(node), node.out_shape, 0, 0, depth)
            yield from _rows(node.body, depth + 1)
            yield from _rows(node.shortcut, depth + 1)
        else:
            size = sum(param.size for _, param in node.params if param.trainable)
            yield LayerRow(node.path, _kind(node), _settings(node), node.out_shape, size, node.flops, depth)


def _kind(node: Node) -> str:
    kind = node.layer.kind
    return (kind if node.origin in ("", kind) else f"{kind} ({node.origin})") + _quoted_name(node)


def _quoted_name(node: AnyNode) -> str:
    return f" {node.name!r}" if node.name else ""


def _settings(node: Node) -> str:
    """List the layer's settings, except those that follow from the output shape or never vary."""
    plain: dict[str, Any] = asdict(node.layer)
    hidden = {"units", "filters", "shape", "kernel_init", "vocabulary"}
    if plain.get("function") != "leaky_relu":
        hidden.add("slope")
    texts = [_setting(key, value) for key, value in plain.items() if key not in hidden]
    texts += ["frozen"] if node.frozen and node.params else []
    return " ".join(text for text in texts if text)


def _setting(key: str, value: Any) -> str:
    if key == "use_bias":
        return "" if value else "no bias"
    if isinstance(value, bool):
        return key if value else ""
    return str(value) if isinstance(value, str) else f"{key}={value}"


def _residual_text(node: ResidualNode) -> str:
    return "shortcut(x) + body(x)" if node.shortcut else "x + body(x)"
