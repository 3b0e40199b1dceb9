"""Packages of the product form no import cycle, imports inside functions and `if TYPE_CHECKING` included.

A node of the graph is a folder without subfolders, or a module that lies next to folders (as
`core/adapter.py` does). Modules of one folder may import each other as they like.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.project.test_boundaries import Import, files, imports

Graph = Mapping[str, Mapping[str, str]]
"""For each node the nodes that it imports, each with one import as evidence: `module:line imports target`."""


@functools.cache
def module_imports(source: str, module: str, is_package: bool) -> tuple[Import, ...]:
    """All imports of a module; every test parses the same sources."""
    return tuple(imports(source, module, is_package))


def import_graph(sources: Mapping[str, tuple[Path, str]]) -> Graph:
    """The graph of modules given as `{name: (path, source)}`."""
    parents = {folder for path, _ in sources.values() for folder in path.parent.parents}
    node = {
        module: module if path.parent in parents or path.name == "__init__.py" else module.rpartition(".")[0]
        for module, (path, _) in sources.items()
    }

    def module_of(target: str) -> str | None:
        """The module that an import loads: `a.b` of `from a.b import name`."""
        parent = target.rpartition(".")[0]
        return next((name for name in (target, parent) if name in sources), None)

    graph: dict[str, dict[str, str]] = {}
    for module, (path, source) in sources.items():
        edges = graph.setdefault(node[module], {})
        for item in module_imports(source, module, path.name == "__init__.py"):
            imported = module_of(item.target)
            if imported is not None and node[imported] != node[module]:
                edges.setdefault(node[imported], f"{module}:{item.line} imports {imported}")
    return graph


def find_cycle(graph: Graph) -> list[str]:
    """The imports along one cycle of the graph; empty if there is none."""
    finished: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            cycle = [*path[path.index(node) :], node]
            return [graph[a][b] for a, b in itertools.pairwise(cycle)]
        if node in finished:
            return []
        for successor in graph.get(node, {}):
            if cycle := walk(successor, [*path, node]):
                return cycle
        finished.add(node)
        return []

    return next((cycle for start in graph if (cycle := walk(start, []))), [])


def product() -> dict[str, tuple[Path, str]]:
    """All modules of the product with their sources."""
    return {name: (path, path.read_text("utf-8")) for name, path in files().items()}


def test_packages_form_no_import_cycle() -> None:
    """Catches: packages that can only be understood together, however the import is hidden."""
    graph = import_graph(product())
    assert len(graph) > 20, "hardly any package was found: the test looks in the wrong place"
    cycle = find_cycle(graph)
    assert not cycle, "import cycle:\n" + "\n".join(cycle)


def planted(extra: Iterable[tuple[str, str]]) -> list[str]:
    """The cycle after lines were added to modules of the product."""
    sources = product()
    for module, line in extra:
        path, source = sources[module]
        sources[module] = path, f"{source}\n{line}\n"
    return find_cycle(import_graph(sources))


def test_a_planted_cycle_is_named() -> None:
    """Catches: a search that overlooks imports in functions or under TYPE_CHECKING, between folders or
    between a module and a folder; a message that does not say which imports are to blame."""
    lazy = "def f():\n    from harness.shell.session.session import Session"
    assert "harness.shell.tracking.store:" in "\n".join(planted([("harness.shell.tracking.store", lazy)]))
    typed = "if TYPE_CHECKING:\n    from harness.shell.engines.local import LocalEngine"
    assert planted([("harness.shell.workers.key", typed)])
    upward = "from harness.core import adapter"
    assert planted([("harness.core.network.basic", upward)])
    assert not planted([("harness.shell.engines.local", "from harness.shell.engines import protocol")])
