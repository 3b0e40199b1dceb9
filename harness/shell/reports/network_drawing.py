"""A network as a self-contained SVG, for `evenbench show --svg`.

Layers are boxes from top to bottom; the layers of a residual block are indented. Blue lines mark the residual
paths: around the body, or into and along the shortcut's layers.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from harness.core.network import Network
from harness.shell.reports.network import LayerRow, input_text, is_block, layer_rows, shape_text

MARGIN, TITLE_HEIGHT = 20, 40  # all lengths in pixels
ROW_HEIGHT, BOX_HEIGHT, INDENT = 34, 24, 28
CHARACTER_WIDTH = 6.4  # on average
ANNOTATION_WIDTH = 220  # of the text to the right of the boxes
GREY, BLUE = "#6b7280", "#2563eb"


def drawing(title: str, network: Network) -> str:
    """Return the SVG document."""
    rows = layer_rows(network)
    depth = max((row.depth for row in rows), default=0)
    box_width = 24 + int(CHARACTER_WIDTH * max(len(_label(row)) for row in rows))
    width = 2 * MARGIN + box_width + depth * INDENT + ANNOTATION_WIDTH
    height = 60 + ROW_HEIGHT * (len(rows) + 1)
    input_label = f"input {shape_text(network.input.shape)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="24" font-size="15" font-weight="bold" fill="#1f2937">'
        f"{html.escape(title)}</text>",
        *_box(0, 0, box_width, input_label, input_text(network), "#e5e7eb", GREY),
    ]
    on_shortcut: dict[int, bool] = {}  # indices of rows on a shortcut, and whether each is its first
    for index, row in enumerate(rows, start=1):
        if is_block(row):
            last = _last_inside(rows, index - 1) + 1
            prefix = f"{row.path}.shortcut."
            shortcut = [i for i in range(index + 1, last + 1) if rows[i - 1].path.startswith(prefix)]
            on_shortcut |= {i: i == shortcut[0] for i in shortcut}
            parts.append(_bypass(index, shortcut[0] if shortcut else last, row.depth, bool(shortcut)))
        annotation = shape_text(row.output)
        annotation += f", {row.parameters:,} parameters" if row.parameters else ""
        stroke = BLUE if index in on_shortcut else GREY
        if not on_shortcut.get(index):
            parts.append(_arrow(index, row.depth, stroke))
        parts += _box(index, row.depth, box_width, _label(row), annotation, _colour(row), stroke)
    return "\n".join([*parts, "</svg>", ""])


def _last_inside(rows: Sequence[LayerRow], index: int) -> int:
    """Return the index of the last row of the block at `index`."""
    last = index
    while last + 1 < len(rows) and rows[last + 1].depth > rows[index].depth:
        last += 1
    return last


def _label(row: LayerRow) -> str:
    return f"{row.kind} {row.settings}".strip()


def _colour(row: LayerRow) -> str:
    if is_block(row):
        return "#eff6ff"
    return "#fef3c7" if row.parameters else "#f9fafb"


def _box(
    index: int, depth: int, width: int, label: str, annotation: str, colour: str, stroke: str
) -> list[str]:
    x, y = MARGIN + INDENT * depth, TITLE_HEIGHT + ROW_HEIGHT * index
    text_y = y + BOX_HEIGHT - 8
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{BOX_HEIGHT}" rx="5" '
        f'fill="{colour}" stroke="{stroke}"/>',
        f'<text x="{x + 10}" y="{text_y}" fill="#111827">{html.escape(label)}</text>',
        f'<text x="{x + width + 12}" y="{text_y}" fill="#4b5563">{html.escape(annotation)}</text>',
    ]


def _arrow(index: int, depth: int, stroke: str) -> str:
    x, bottom = 60 + INDENT * depth, TITLE_HEIGHT + ROW_HEIGHT * index
    top = bottom - (ROW_HEIGHT - BOX_HEIGHT)
    return f'<path d="M{x} {top} V{bottom}" stroke="{stroke}" fill="none"/>'


def _bypass(first: int, last: int, depth: int, shortcut: bool) -> str:
    """Draw the line around a block's body: from its own box to the end of its last layer, or into a
    shortcut."""
    x = MARGIN + INDENT * depth + 8
    top = TITLE_HEIGHT + ROW_HEIGHT * first + BOX_HEIGHT
    bottom = TITLE_HEIGHT + ROW_HEIGHT * last + (BOX_HEIGHT // 2 if shortcut else 18)
    line = f"M{x} {top} V{bottom} H{x + INDENT - 8}"
    return f'<path d="{line}" stroke="{BLUE}" stroke-width="2" fill="none"/>'
