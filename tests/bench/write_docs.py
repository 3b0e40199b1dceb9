"""Run the benchmarks and write their results to docs/results/benchmarks.md.

    python -m tests.bench.write_docs [--only rivals] [--rounds 3] [--repeats 3] [--trials 64]
    python -m tests.bench.write_docs --only overhead --rows "torch lstm compiled" [--rounds 3]
    python -m tests.bench.write_docs --only text

`--only` measures some parts again (module names, separated by spaces) and leaves the figures of the other
sections as they are; `--rows` does so with rows of the overhead table, since all of them take most of an
hour. `--only text` measures nothing and writes the page's texts again. Each section names the machine that
it was measured on.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from inspect import cleandoc
from types import ModuleType

from tests.bench import (
    fnn_speed,
    growth,
    kills,
    overhead,
    quiet,
    rivals,
    shares,
    sweep_64,
    two_workers,
    warm_trials,
)
from tests.bench.pages import layout
from tests.bench.pages.benchmark_summary import summary
from tests.bench.report import RefusedError, Report, command, machine, say, with_rows
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "results" / "benchmarks.md"
DRAWING = ROOT / "docs" / "images" / "growth.svg"
MEASURED = "Measured "
AGAIN = re.compile(r"^Rows of (.+?) again, .*\n\n", re.MULTILINE)
TOP = """\
# Benchmarks of the harness

Written by `python -m tests.bench.write_docs`. The command below each heading runs one part alone (`--json`
prints JSON). `make overhead` checks the goals against these figures. Absolute times depend on the machine and
its load; ratios between processes that take turns depend on them little.

## Summary

{summary}
## Machines

{machines}
Each section gives the load at its start. Where that is above the number of cores, the machine was busy with
other work too, and times (much more than ratios) are too long.

"""
TEXT = "text"
"""The part that measures nothing."""


@dataclass(frozen=True)
class Part:
    """A section: its title, the module that documents it, how it is measured, what follows the tables."""

    title: str
    module: ModuleType
    measure: Callable[[], Report]
    below: str = ""

    @property
    def name(self) -> str:
        """The part's name for `--only`."""
        return self.module.__name__.rpartition(".")[2]


def write(
    only: str = "", rows: str = "", rounds: int = overhead.FEWEST, repeats: int = 3, trials: int = 64
) -> Report:
    """Measure, write the page, and return the measurements.

    Raises RefusedError for an unknown part, for unknown rows, and where a library is missing that a part
    compares with: the page would lose its figures.
    """
    parts = [
        Part(
            "Overhead of the harness",
            overhead,
            lambda: overhead.measure_overhead(rows, rounds, max(overhead.MOST, rounds)),
        ),
        Part("Compared with other trainers", rivals, rivals.measure_rivals),
        Part("Share of the machine's limit", shares, shares.measure_shares),
        Part("Ways to drive the same network", fnn_speed, fnn_speed.measure_speed),
        Part("Cost of a trial", warm_trials, lambda: warm_trials.measure_sweeps(repeats=repeats)),
        Part("A sweep compared with Lightning", sweep_64, lambda: sweep_64.measure_sweep(repeats=repeats)),
        Part("Two workers", two_workers, lambda: two_workers.measure_workers(repeats=repeats)),
        Part("Resuming after a kill", kills, kills.measure_kills),
        Part("Overhead of logging", quiet, quiet.measure_quiet),
        Part(
            "How times grow",
            growth,
            lambda: growth.measure_growth(trials=trials, svg=str(DRAWING)),
            f"\n![Times against sizes](../images/{DRAWING.name})\n",
        ),
    ]
    names = {part.title: part.name for part in parts}
    selected = only.split() or list(names.values())
    if unknown := set(selected) - {*names.values(), TEXT}:
        raise RefusedError(f"no part {', '.join(unknown)}; the parts are {', '.join(names.values())}")
    if rows and selected != ["overhead"]:
        raise RefusedError("--rows needs --only overhead")
    if "rivals" in selected and (missing := [rival.name for rival in rivals.RIVALS if rival.missing]):
        raise RefusedError(f"{', '.join(missing)}: {rivals.HOW}; or name other parts with --only")
    sections = _sections(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    for part in parts:
        if part.title in sections:
            sections[part.title] = _with_text(part, sections[part.title])
    values = {}
    for part in parts:
        if part.name in selected:
            say(f"== {part.name}")
            before = sections.get(part.title, "")
            section, values[part.name] = _with_rows(part, before, rows, rounds) if rows else _section(part)
            sections[part.title] = section
            _save(sections, names)
    _save(sections, names)
    return Report(values, ())


def _section(part: Part) -> tuple[str, dict[str, object]]:
    described = _describe()
    report = part.measure()
    return f"{_head(part)}{described}\n\n{report.markdown()}\n{part.below}", report.values


def _with_text(part: Part, section: str) -> str:
    """A section with its text written again and its figures unchanged."""
    figures = re.search(rf"^({MEASURED}|\*\*)", section, re.MULTILINE)
    assert figures, part.title
    return f"{_head(part)}{section[figures.start() :]}"


def _head(part: Part) -> str:
    text = "\n".join(_without_command(cleandoc(part.module.__doc__ or "")))
    return f"## {part.title}\n\n`python -m {part.module.__name__}`\n\n{text}\n\n"


def _with_rows(part: Part, section: str, filter_: str, rounds: int) -> tuple[str, dict[str, object]]:
    """The overhead section with the selected rows measured again, and a note that names them."""
    described = _describe()
    report = part.measure()
    table = report.tables[0]
    if not table.rows:
        raise RefusedError(f"no row matches {filter_!r}: an architecture, a framework, an execution")
    _, measured, rest = section.partition(MEASURED)
    first, _, rest = rest.partition("\n\n")
    again = f"Rows of {filter_} again, in {rounds} rounds or more. {described}"
    others = AGAIN.sub(
        lambda older: "" if overhead.selected(filter_, *older[1].split()) else older[0],
        with_rows(rest, table, keys=3),
    )
    return f"{_head(part)}{measured}{first}\n\n{again}\n\n{others}", report.values


def _sections(page: str) -> dict[str, str]:
    """The sections of a page by title, unfolded and with full descriptions of machines."""
    page = layout.unfold(layout.describe_machines(page))
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].removeprefix("## "): part.rstrip("\n") + "\n" for part in parts}


def _save(sections: dict[str, str], names: dict[str, str]) -> None:
    """Write the page: summary, machines, and the sections in the order of `names` (title to part)."""
    ordered = {title: sections[title] for title in names if title in sections}
    text, machines = layout.name_machines("\n".join(ordered.values()))
    top = TOP.format(summary=summary(ordered, names), machines=machines)
    PAGE.parent.mkdir(exist_ok=True)
    draft = PAGE.with_name(f".{PAGE.name}.tmp")
    draft.write_text(top + layout.fold(text), encoding="utf-8")
    os.replace(draft, PAGE)


def _describe() -> str:
    on = machine()
    versions = ", ".join(f"{name} {version}" for name, version in on["versions"].items())
    load = "Load at the start: {}, {}, {} over 1, 5 and 15 minutes.".format(*on["load_average"])
    system = f"{on['processor']}, {on['cores']} cores, {on['system']}, Python {on['python']}"
    return f"{MEASURED}on {on['date']}: {system}, {versions}. {load}"


def _without_command(text: str) -> list[str]:
    """The lines of a benchmark's docstring, without its title line and the usage in it."""
    lines = text.splitlines()
    usage = next(i for i, line in enumerate(lines) if line.strip().startswith("python -m tests.bench"))
    return [lines[0], *lines[usage + 1 :]]


if __name__ == "__main__":
    description = "Run the benchmarks and write docs/results/benchmarks.md."
    sys.exit(command(write, description, only="", rows="", rounds=overhead.FEWEST, repeats=3, trials=64))
