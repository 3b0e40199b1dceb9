"""Layout of the generated pages: large tables are folded, and each machine is described once a page."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

FOLD_ABOVE = 12
"""Tables with more rows than this are folded."""

_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
_FOLDED = re.compile(r"<details>\n<summary>.*</summary>\n\n((?:\|.*\n)+)\n</details>\n")
_FULL = re.compile(r"(Measured on [\d-]+): (.+?)\. (?=Load at the start)")
_SHORT = re.compile(r"(Measured on [\d-]+) on machine ([A-Z])\. (?=Load at the start)")
_MACHINE = re.compile(r"^- \*\*([A-Z])\*\*: (.+)\.$", re.MULTILINE)
_TITLED = re.compile(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", re.MULTILINE)


def fold(text: str) -> str:
    """Put each large table into a `<details>` element."""

    def folded(match: re.Match[str]) -> str:
        rows = match[0].count("\n") - 2
        if rows <= FOLD_ABOVE:
            return match[0]
        return f"<details>\n<summary>Show the table ({rows} rows)</summary>\n\n{match[0]}\n</details>\n"

    return _TABLE.sub(folded, text if text.endswith("\n") else text + "\n")


def unfold(text: str) -> str:
    """Undo `fold`."""
    return _FOLDED.sub(r"\1", text)


def name_machines(text: str) -> tuple[str, str]:
    """Replace each description of a machine by a letter; return the text and the list of machines."""
    letters: dict[str, str] = {}

    def short(match: re.Match[str]) -> str:
        letter = letters.setdefault(match[2], string.ascii_uppercase[len(letters)])
        return f"{match[1]} on machine {letter}. "

    text = _FULL.sub(short, text)
    return text, "".join(f"- **{letter}**: {machine}.\n" for machine, letter in letters.items())


def describe_machines(page: str) -> str:
    """Undo `name_machines`: replace the letters in a page by the descriptions in its list."""
    machines = dict(_MACHINE.findall(page))
    return _SHORT.sub(lambda match: f"{match[1]}: {machines[match[2]]}. ", page)


@dataclass(frozen=True)
class PageTable:
    """A table read from a page: the names of its columns and the cells of its rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> list[str]:
        """The cells of the first column whose name begins with `name`."""
        index = next(i for i, column in enumerate(self.columns) if column.startswith(name))
        return [row[index] for row in self.rows]

    def numbers(self, name: str) -> list[float]:
        """The number at the beginning of each cell of a column."""
        return [float(cell.split()[0]) for cell in self.column(name)]


def tables(section: str) -> list[PageTable]:
    """The titled tables of an unfolded section, in order."""
    return [_table(lines) for _, lines in _TITLED.findall(section)]


def _table(lines: str) -> PageTable:
    columns, _, *rows = (tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines.splitlines())
    return PageTable(columns, tuple(rows))
