"""Where tables are printed, and what they look like."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def screen() -> Console:
    """Standard output, on which numbers and paths have no colours of their own."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file has no width: whole lines are easier to read, and to search
    return console


def plain_table(title: str = "") -> Table:
    """A table without lines and without columns yet."""
    return Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
