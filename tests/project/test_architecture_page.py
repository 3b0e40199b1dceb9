"""docs/architecture.md is true: its drawing of the packages, and every file that it names."""

from __future__ import annotations

import re

from tests.project.test_package_cycles import import_graph, product
from tests.support.pages import page_named
from tests.support.paths import ROOT

PAGE = page_named("architecture.md").read_text("utf-8")
MODULES = ("adapter", "fast_imports", "rng", "validation")
"""The modules of core that lie next to its packages."""


def drawn_lines() -> dict[str, int]:
    """The line of each package of shell and core in the drawing, as `shell.runs` or `core.rng`."""
    (drawing,) = re.findall(r"^```text\n(SHELL.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    floor, lines = "", {}
    for number, line in enumerate(drawing.splitlines()):
        if line[:1].isupper():
            floor = line.split()[0].lower()
            continue
        for name in re.match(r" {9}([a-z_.]+(?:, [a-z_.]+)*)", line)[1].split(", "):  # type: ignore[index]
            lines[f"{floor}.{name.removesuffix('.py')}"] = number
    return lines


def drawn_name(node: str) -> str:
    """The name in the drawing of a node of the import graph; empty if the drawing leaves it out."""
    top, *rest = node.removeprefix("harness.").split(".")
    if top == "hydra_plugins":
        return "shell.hydra_plugins"
    return f"{top}.{rest[0]}" if top in ("shell", "core") and rest else ""


def test_every_import_leads_down_in_the_drawing() -> None:
    """Catches: a package that the drawing lacks, and an import that it does not show."""
    lines = drawn_lines()
    edges = {
        (drawn_name(importer), drawn_name(imported)): evidence
        for importer, targets in import_graph(product()).items()
        for imported, evidence in targets.items()
    }
    edges = {(a, b): evidence for (a, b), evidence in edges.items() if a and b and a != b}
    assert {name for pair in edges for name in pair} == set(lines)
    upward = [evidence for (a, b), evidence in edges.items() if lines[a] >= lines[b]]
    assert not upward, "\n".join(upward)


def test_every_module_next_to_the_packages_of_core_is_drawn() -> None:
    """Catches: a module that was added to core without a place in the drawing."""
    modules = {path.stem for path in (ROOT / "harness" / "core").glob("*.py")} - {"__init__"}
    assert modules == set(MODULES) and {f"core.{name}" for name in modules} <= set(drawn_lines())


def test_the_walk_visits_at_most_nine_files_each_once() -> None:
    """Catches: a longer walk, or a file that was moved."""
    walk = re.findall(r"^\d+\. `([\w/.]+\.py)`", PAGE.partition("## From the command line")[2], re.MULTILINE)
    assert 5 <= len(walk) == len(set(walk)) <= 9
    assert all((ROOT / path).exists() for path in walk)
