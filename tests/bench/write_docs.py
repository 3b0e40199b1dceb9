"""Run all benchmarks and write what they find to docs/benchmarks.md: `python -m tests.bench.write_docs`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path

from tests.bench import fnn_speed, overhead, warm_trials
from tests.bench.report import Report, command, machine, say

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
MODULES: dict[str, tuple[str, Callable[[], Report]]] = {
    "overhead": ("What the harness costs", overhead.measure_overhead),
    "fnn_speed": ("What the loop decides", fnn_speed.measure_speed),
    "warm_trials": ("What a trial of a sweep costs", warm_trials.measure_sweeps),
}
TOP = """\
# Benchmarks of the harness

Written by `python -m tests.bench.write_docs`; each part can be had alone with the command beside it (`--json`
for machines). `make overhead` holds the goals against them. Figures move from machine to machine, and with
what else it does; ratios of runs that took turns move little.

"""


def write() -> Report:
    """Measure everything and write the page; returns what is on it."""
    described = _describe()
    sections, values = [], {}
    for name, (title, measure) in MODULES.items():
        say(f"== {name}")
        found = measure()
        text = cleandoc(sys.modules[measure.__module__].__doc__ or "")
        text = "\n".join(line[4:] if line.startswith("    ") else line for line in _without_command(text))
        head = f"## {title}\n\n`python -m tests.bench.{name}`: {text}"
        sections.append(f"{head}\n\n{found.markdown()}\n")
        values[name] = found.values
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
    """The lines of a benchmark's docstring, without the usage in it."""
    return [line for line in text.splitlines() if not line.strip().startswith("python -m tests.bench")]


if __name__ == "__main__":
    sys.exit(command(write, "Run all benchmarks and write docs/benchmarks.md."))
