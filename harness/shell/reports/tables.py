"""The console that tables are printed on, and their style."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def screen() -> Console:
    """Return a console for standard output that does not colour numbers and paths."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # files have no width; long lines are easier to read and to search
    return console


def plain_table(title: str = "") -> Table:
    """Create a table without lines, still without columns."""
    return Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
