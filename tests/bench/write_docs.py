"""Run the benchmarks and write what they find to docs/benchmarks.md.

    python -m tests.bench.write_docs [--only rivals] [--rounds 3] [--repeats 3] [--trials 64]
    python -m tests.bench.write_docs --only overhead --rows "torch lstm compiled" [--rounds 3]

`--only` measures some parts anew (module names, by spaces) and leaves the other sections of the page as they
are; `--rows` does so with rows of what the harness costs, since all of them take most of an hour. Each
section says on what it was measured.
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
from tests.bench.report import RefusedError, Report, command, machine, say, with_rows
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
DRAWING = "growth.svg"
MEASURED = "Measured "
AGAIN = re.compile(r"^Rows of (.+?) again, .*\n\n", re.MULTILINE)
TOP = """\
# Benchmarks of the harness

Written by `python -m tests.bench.write_docs`; each part can be had alone with the command beside it (`--json`
for machines). `make overhead` holds the goals against them. Figures move from machine to machine, and with
what else it does; ratios of runs that took turns move little.

"""


@dataclass(frozen=True)
class Part:
    """A section: its title, the module that introduces it, how it is measured, what comes below."""

    title: str
    module: ModuleType
    measure: Callable[[], Report]
    below: str = ""

    @property
    def name(self) -> str:
        """What `--only` calls it."""
        return self.module.__name__.rpartition(".")[2]


def write(
    only: str = "", rows: str = "", rounds: int = overhead.FEWEST, repeats: int = 3, trials: int = 64
) -> Report:
    """Measure and write the page; returns what was measured.

    Raises RefusedError for an unknown part, for rows that there are not, and where a library is missing that
    a part compares with: the page would lose what it has of it.
    """
    drawing = str(PAGE.with_name(DRAWING))
    parts = [
        Part(
            "What the harness costs",
            overhead,
            lambda: overhead.measure_overhead(rows, rounds, max(overhead.MOST, rounds)),
        ),
        Part("What others take", rivals, rivals.measure_rivals),
        Part("How much of the machine is used", shares, shares.measure_shares),
        Part("What the loop decides", fnn_speed, fnn_speed.measure_speed),
        Part("What a trial costs", warm_trials, lambda: warm_trials.measure_sweeps(repeats=repeats)),
        Part("A sweep beside the usual way", sweep_64, lambda: sweep_64.measure_sweep(repeats=repeats)),
        Part("Two workers", two_workers, lambda: two_workers.measure_workers(repeats=repeats)),
        Part("What a kill leaves", kills, kills.measure_kills),
        Part("What logging costs", quiet, quiet.measure_quiet),
        Part(
            "How times grow",
            growth,
            lambda: growth.measure_growth(trials=trials, svg=drawing),
            f"\n![Times against sizes]({DRAWING})\n",
        ),
    ]
    wanted = only.split() or [part.name for part in parts]
    if unknown := set(wanted) - {part.name for part in parts}:
        raise RefusedError(
            f"no part {', '.join(unknown)}; there are {', '.join(part.name for part in parts)}"
        )
    if rows and wanted != ["overhead"]:
        raise RefusedError("--rows goes with --only overhead")
    if "rivals" in wanted and (missing := [rival.name for rival in rivals.RIVALS if rival.missing]):
        raise RefusedError(f"{', '.join(missing)}: {rivals.HOW}; or name other parts with --only")
    sections = _sections(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    values = {}
    for part in parts:
        if part.name in wanted:
            say(f"== {part.name}")
            before = sections.get(part.title, "")
            found = _with_rows(part, before, rows, rounds) if rows else _section(part)
            sections[part.title], values[part.name] = found
            _save([sections[each.title] for each in parts if each.title in sections])
    return Report(values, ())


def _section(part: Part) -> tuple[str, dict[str, object]]:
    described = _describe()
    found = part.measure()
    return f"{_head(part)}{described}\n\n{found.markdown()}\n{part.below}", found.values


def _head(part: Part) -> str:
    text = "\n".join(_without_command(cleandoc(part.module.__doc__ or "")))
    return f"## {part.title}\n\n`python -m {part.module.__name__}`\n\n{text}\n\n"


def _with_rows(part: Part, section: str, asked: str, rounds: int) -> tuple[str, dict[str, object]]:
    """A section of overhead with some rows measured anew, which it says of them."""
    described = _describe()
    found = part.measure()
    table = found.tables[0]
    if not table.rows:
        raise RefusedError(f"no row has all of {asked!r}: an architecture, a framework, an execution")
    _, measured, rest = section.partition(MEASURED)
    first, _, rest = rest.partition("\n\n")
    again = f"Rows of {asked} again, in {rounds} rounds or more. {described}"
    kept = AGAIN.sub(
        lambda older: "" if overhead.asked(asked, *older[1].split()) else older[0],
        with_rows(rest, table, keys=3),
    )
    return f"{_head(part)}{measured}{first}\n\n{again}\n\n{kept}", found.values


def _sections(page: str) -> dict[str, str]:
    """The sections of a page by their titles."""
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].removeprefix("## "): part.rstrip("\n") + "\n" for part in parts}


def _save(sections: list[str]) -> None:
    PAGE.parent.mkdir(exist_ok=True)
    draft = PAGE.with_name(f".{PAGE.name}.tmp")
    draft.write_text(TOP + "\n".join(sections), encoding="utf-8")
    os.replace(draft, PAGE)


def _describe() -> str:
    found = machine()
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    load = "Load at the start {}, {}, {} over 1, 5 and 15 minutes".format(*found["load_average"])
    on = f"{found['processor']}, {found['cores']} cores, {found['system']}, Python {found['python']}"
    return (
        f"{MEASURED}on {found['date']}: {on}, {versions}. {load}: where that is above the number of cores, "
        "the machine was busy with other things too, and times (much more than ratios) are too long."
    )


def _without_command(text: str) -> list[str]:
    """The lines of a benchmark's docstring, without its title line and the usage in it."""
    lines = text.splitlines()
    usage = next(i for i, line in enumerate(lines) if line.strip().startswith("python -m tests.bench"))
    return [lines[0], *lines[usage + 1 :]]


if __name__ == "__main__":
    description = "Run the benchmarks and write docs/benchmarks.md."
    sys.exit(command(write, description, only="", rows="", rounds=overhead.FEWEST, repeats=3, trials=64))
