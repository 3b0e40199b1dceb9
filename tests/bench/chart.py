"""Small line charts on logarithmic axes, side by side in one SVG file."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 300, 230, 52, 34, 26, 12  # pixels of a panel and its margins
COLUMNS = 3
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")
GREY = "#6b7280"


@dataclass(frozen=True)
class Series:
    """A line: its name, its points (x, y), and the x of the point marked by a ring."""

    name: str
    points: tuple[tuple[float, float], ...]
    marked: float | None = None


@dataclass(frozen=True)
class Panel:
    """One chart: its title, the unit of its y axis, its lines."""

    title: str
    unit: str
    series: tuple[Series, ...]


def chart(panels: Sequence[Panel]) -> str:
    """The SVG document; a name has the same colour in all panels."""
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    columns = min(COLUMNS, len(panels))
    width, height = columns * WIDTH, -(-len(panels) // columns) * HEIGHT + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        x, y = number % columns * WIDTH, number // columns * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel, colours), "</g>"]
    x = LEFT
    for name in names:
        parts.append(f'<rect x="{x}" y="{height - 18}" width="12" height="4" fill="{colours[name]}"/>')
        parts.append(f'<text x="{x + 16}" y="{height - 12}">{html.escape(name)}</text>')
        x += 40 + 7 * len(name)
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, colours: dict[str, str]) -> list[str]:
    xs = sorted({x for series in panel.series for x, _ in series.points})
    ys = [y for series in panel.series for _, y in series.points]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    high = max(high, low + 1)
    first, last = math.log(xs[0]), math.log(xs[-1])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - first) / ((last - first) or 1.0)
        up = (math.log10(y) - low) / (high - low)
        return LEFT + across * (right - LEFT), bottom - up * (bottom - TOP)

    title = html.escape(f"{panel.title}, {panel.unit}")
    parts = [f'<text x="{LEFT}" y="16" font-weight="bold">{title}</text>']
    for power in range(low, high + 1):
        _, y = place(xs[0], 10.0**power)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        label = f"{10.0**power:g}"
        parts.append(f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end" fill="{GREY}">{label}</text>')
    for value in xs:
        x, _ = place(value, 10.0**low)
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="{GREY}">{value:g}</text>'
        )
    for series in panel.series:
        colour = colours[series.name]
        at = [place(*point) for point in series.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in at]
        for (value, _), (x, y) in zip(series.points, at, strict=True):
            if value == series.marked:
                ring = f'r="6" fill="none" stroke="{colour}" stroke-width="1.5"'
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" {ring}/>')
    return parts
