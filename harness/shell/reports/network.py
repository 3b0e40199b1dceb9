"""`evenbench show`: the layers of a network with shapes, parameters and operations, as table and drawing."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from harness.core.network import AnyNode, Network, Node, ResidualNode
from harness.shell.reports.tables import plain_table

ROW, BOX_HEIGHT, INDENT = 34, 24, 28  # pixels of the drawing
CHARACTER = 6.4  # pixels of one, on average
GREY, BLUE = "#6b7280", "#2563eb"


@dataclass(frozen=True)
class LayerRow:
    """One layer: its place (the prefix of its weights' names), kind, numbers, and output."""

    path: str
    kind: str
    settings: str
    output: tuple[int, ...]
    parameters: int
    flops: int
    depth: int


def layer_rows(network: Network) -> list[LayerRow]:
    """The layers in order; a residual block has a row of its own, its layers are one deeper."""
    return list(_rows(network.nodes, 0))


def as_json(title: str, network: Network) -> str:
    """The table as JSON, with totals."""
    rows = [asdict(row) for row in layer_rows(network)]
    total = {"parameters": network.size(), "flops": network.flops(), "input": list(network.input.shape)}
    return json.dumps({"network": title, **total, "layers": rows}, indent=1)


def print_table(title: str, network: Network, console: Console) -> None:
    """Print the table with totals."""
    table = plain_table(title)
    for name in ("place", "layer", "settings", "output"):
        table.add_column(name)
    for name in ("parameters", "FLOPs"):
        table.add_column(name, justify="right")
    table.add_row("", "input", _input_text(network), _shape(network.input.shape), "", "")
    for row in layer_rows(network):
        kind = "  " * row.depth + row.kind
        numbers = (f"{row.parameters:,}" if row.parameters else "", f"{row.flops:,}" if row.flops else "")
        table.add_row(row.path, kind, row.settings, _shape(row.output), *numbers)
    table.add_section()
    table.add_row("", "total", "", "", f"{network.size():,}", f"{network.flops():,}")
    console.print(table)
    console.print(
        "FLOPs are of one forward pass of one sample; a training step takes about three times as many."
    )


def drawing(title: str, network: Network) -> str:
    """The network as a self-contained SVG: boxes from top to bottom, residual paths beside them in blue."""
    rows = layer_rows(network)
    depth = max((row.depth for row in rows), default=0)
    box = 24 + int(CHARACTER * max(len(_label(row)) for row in rows))
    width = 2 * 20 + box + depth * INDENT + 220
    height = 60 + ROW * (len(rows) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="20" y="24" font-size="15" font-weight="bold" fill="#1f2937">{html.escape(title)}</text>',
        *_box(0, 0, box, f"input {_shape(network.input.shape)}", _input_text(network), "#e5e7eb", GREY),
    ]
    shortcuts: dict[int, bool] = {}  # rows on a shortcut, and whether they are its first
    for index, row in enumerate(rows, start=1):
        if _is_block(row):
            last = _last_inside(rows, index - 1) + 1
            on = [
                i for i in range(index + 1, last + 1) if rows[i - 1].path.startswith(f"{row.path}.shortcut.")
            ]
            shortcuts |= {i: i == on[0] for i in on}
            parts.append(_bypass(index, on[0] if on else last, row.depth, bool(on)))
        beside = f"{_shape(row.output)}" + (f", {row.parameters:,} parameters" if row.parameters else "")
        stroke = BLUE if index in shortcuts else GREY
        parts += [] if shortcuts.get(index) else [_arrow(index, row.depth, stroke)]
        parts += _box(index, row.depth, box, _label(row), beside, _colour(row), stroke)
    return "\n".join([*parts, "</svg>", ""])


def _rows(nodes: tuple[AnyNode, ...], depth: int) -> Iterator[LayerRow]:
    for node in nodes:
        if isinstance(node, ResidualNode):
            kind = "residual" + _named(node)
            yield LayerRow(node.path, kind, _residual_text(node), node.out_shape, 0, 0, depth)
            yield from _rows(node.body, depth + 1)
            yield from _rows(node.shortcut, depth + 1)
        else:
            size = sum(param.size for _, param in node.params if param.trainable)
            yield LayerRow(node.path, _kind(node), _settings(node), node.out_shape, size, node.flops, depth)


def _kind(node: Node) -> str:
    kind = node.layer.kind
    return (kind if node.origin in ("", kind) else f"{kind} ({node.origin})") + _named(node)


def _named(node: AnyNode) -> str:
    return f" {node.name!r}" if node.name else ""


def _is_block(row: LayerRow) -> bool:
    return row.kind.partition(" ")[0] == "residual"


def _settings(node: Node) -> str:
    """What the layer was given, without what the output's shape says and what is as always."""
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


def _input_text(network: Network) -> str:
    given = network.input
    texts = [f"token ids below {given.vocabulary}"] if given.vocabulary else []
    return ", ".join([*texts, *(["unequal lengths"] if given.lengths else [])])


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _last_inside(rows: list[LayerRow], index: int) -> int:
    """The index of the last row that lies deeper than the row at `index` and follows it directly."""
    last = index
    while last + 1 < len(rows) and rows[last + 1].depth > rows[index].depth:
        last += 1
    return last


def _label(row: LayerRow) -> str:
    return f"{row.kind} {row.settings}".strip()


def _box(index: int, depth: int, width: int, label: str, beside: str, colour: str, stroke: str) -> list[str]:
    x, y = 20 + INDENT * depth, 40 + ROW * index
    text_y = y + BOX_HEIGHT - 8
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{BOX_HEIGHT}" rx="5" '
        f'fill="{colour}" stroke="{stroke}"/>',
        f'<text x="{x + 10}" y="{text_y}" fill="#111827">{html.escape(label)}</text>',
        f'<text x="{x + width + 12}" y="{text_y}" fill="#4b5563">{html.escape(beside)}</text>',
    ]


def _arrow(index: int, depth: int, stroke: str) -> str:
    x, bottom = 60 + INDENT * depth, 40 + ROW * index
    top = bottom - (ROW - BOX_HEIGHT)
    return f'<path d="M{x} {top} V{bottom}" stroke="{stroke}" fill="none"/>'


def _bypass(first: int, last: int, depth: int, shortcut: bool) -> str:
    """The line around a block's body, from its own box to the end of its last layer, or into a shortcut."""
    x = 20 + INDENT * depth + 8
    top, bottom = 40 + ROW * first + BOX_HEIGHT, 40 + ROW * last + (BOX_HEIGHT // 2 if shortcut else 18)
    line = f"M{x} {top} V{bottom} H{x + INDENT - 8}"
    return f'<path d="{line}" stroke="{BLUE}" stroke-width="2" fill="none"/>'


def _colour(row: LayerRow) -> str:
    if _is_block(row):
        return "#eff6ff"
    return "#fef3c7" if row.parameters else "#f9fafb"
