"""Reports of benchmarks: tables in Markdown or JSON, and a description of the machine."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "keras", "tensorflow", "jax", "mlflow", "hydra-core", "numpy")


class RefusedError(Exception):
    """A request that cannot be measured."""


@dataclass(frozen=True)
class Table:
    """A table with a title; `notes` are printed below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table in Markdown, with aligned columns so that it is readable in a terminal."""
        cells = [tuple(map(_text, row)) for row in (self.columns, *self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        return "\n".join([f"**{self.title}**", "", *lines, *(f"\n{note}" for note in self.notes)])


@dataclass(frozen=True)
class Report:
    """The results of a benchmark: `values` for programs, `tables` for people."""

    values: dict[str, Any]
    tables: tuple[Table, ...]
    measured_on: dict[str, Any] = field(default_factory=lambda: machine())

    def to_json(self) -> str:
        return json.dumps({"measured_on": self.measured_on, **self.values}, indent=1)

    def markdown(self) -> str:
        return "\n\n".join(table.markdown() for table in self.tables)


def with_rows(page: str, fresh: Table, keys: int) -> str:
    """A page whose table of the same title has the rows of `fresh` instead of those with the same first
    `keys` cells. Raises RefusedError if the page has no such table or rows."""
    before, _, after = page.partition(f"**{fresh.title}**\n\n")
    lines = list(itertools.takewhile(lambda line: line.startswith("|"), after.split("\n")))
    columns, _, *rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines] or ((), ())
    new = {row[:keys]: row for row in fresh.rows}
    if columns != fresh.columns or new.keys() - {row[:keys] for row in rows}:
        raise RefusedError(f"the page has no table {fresh.title!r} with these columns and rows")
    table = Table(fresh.title, columns, tuple(new.get(row[:keys], row) for row in rows))
    return before + table.markdown() + after.removeprefix("\n".join(lines))


def machine() -> dict[str, Any]:
    """Date, processor, cores, load and versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def command(measure: Callable[..., Report], description: str, **options: Any) -> int:
    """The command line of a benchmark: `--json`, and an option for each of `options` with its default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print JSON")
    for name, default in options.items():
        kind = type(default)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"default: {default}")
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    try:
        report = measure(**arguments)
    except RefusedError as error:
        parser.error(str(error))
    print(report.to_json() if as_json else report.markdown())
    return 0


def say(text: str) -> None:
    """Print a line on progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as a JSON value."""
    return asdict(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # no /proc on this system
    return platform.processor() or platform.machine()
