"""Run all benchmarks and write what they find to docs/benchmarks.md: `python -m tests.bench.write_docs`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from types import ModuleType

from tests.bench import fnn_speed, overhead, warm_trials
from tests.bench.report import Report, command, machine, say

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
TOP = """\
# Benchmarks of the harness

Written by `python -m tests.bench.write_docs`; each part can be had alone with the command beside it (`--json`
for machines). `make overhead` holds the goals against them. Figures move from machine to machine, and with
what else it does; ratios of runs that took turns move little.

"""


def write(rounds: int = 3, repeats: int = 3) -> Report:
    """Measure everything and write the page; returns what is on it."""
    described = _describe()
    parts: list[tuple[str, ModuleType, Callable[[], Report]]] = [
        ("What the harness costs", overhead, lambda: overhead.measure_overhead(rounds=rounds)),
        ("What the loop decides", fnn_speed, fnn_speed.measure_speed),
        ("What a trial costs", warm_trials, lambda: warm_trials.measure_sweeps(repeats=repeats)),
    ]
    sections, values = [], {}
    for title, module, measure in parts:
        name = module.__name__
        say(f"== {name}")
        found = measure()
        text = "\n".join(_without_command(cleandoc(module.__doc__ or "")))
        sections.append(f"## {title}\n\n`python -m {name}`\n\n{text}\n\n{found.markdown()}\n")
        values[name.rpartition(".")[2]] = found.values
    PAGE.parent.mkdir(exist_ok=True)
    draft = PAGE.with_name(f".{PAGE.name}.tmp")
    draft.write_text(TOP + described + "\n\n" + "\n".join(sections), encoding="utf-8")
    os.replace(draft, PAGE)
    return Report(values, ())


def _describe() -> str:
    found = machine()
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    load = "Load at the start {}, {}, {} over 1, 5 and 15 minutes".format(*found["load_average"])
    on = f"{found['processor']}, {found['cores']} cores, {found['system']}, Python {found['python']}"
    return (
        f"Measured on {found['date']}: {on}, {versions}. {load}: where that is above the number of cores, "
        "the machine was busy with other things too, and times (much more than ratios) are too long."
    )


def _without_command(text: str) -> list[str]:
    """The lines of a benchmark's docstring, without its title line and the usage in it."""
    lines = text.splitlines()
    usage = next(i for i, line in enumerate(lines) if line.strip().startswith("python -m tests.bench"))
    return [lines[0], *lines[usage + 1 :]]


if __name__ == "__main__":
    sys.exit(command(write, "Run all benchmarks and write docs/benchmarks.md.", rounds=3, repeats=3))
