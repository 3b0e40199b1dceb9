"""The dependency rule: worker, shell and adapters import core, and the shell imports no framework.

Two complementary checks: reading every import statement in `harness/` and `adapters/` finds imports that only
one branch reaches; importing each layer in a child process and listing the loaded modules finds indirect
imports.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import ROOT

STDLIB = frozenset(sys.stdlib_module_names)

FRAMEWORKS = frozenset({"torch", "keras", "tensorflow", "jax", "jaxlib"})
ORCHESTRATION = frozenset({"hydra", "omegaconf", "mlflow"})
CLUSTERS = {"ray": "ray", "submitit": "slurm_scheduler"}  # each imported by one module, on use

# What an adapter may import besides core and NumPy: the framework that it is named after, or those listed
# here.
OWN_FRAMEWORKS = {
    "keras": frozenset({"keras", "tensorflow", "jax", "torch"}),
    "torch": frozenset({"torch", "safetensors", "onnxruntime"}),
}

# The core package in which a function (never the module itself) may import the packages that bring data.
MAY_LOAD_DATA_PACKAGES = "harness.core.data"

FOLDERS = {"core": "core", "worker": "worker", "shell": "shell", "hydra_plugins": "shell"}
"""The layer of each folder of harness/."""


@dataclass(frozen=True)
class Import:
    """One imported name: `target` is dotted and absolute, `inside` is whether it is in a function."""

    target: str
    line: int
    inside: bool

    @property
    def top(self) -> str:
        """The distribution-level name, `torch` of `torch.nn`."""
        return self.target.split(".")[0]

    @property
    def second(self) -> str:
        """The second part, `shell` of `harness.shell.commands.main`; empty if there is none."""
        return self.target.split(".")[1] if "." in self.target else ""


def imports(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import in `source`, including those in functions and `if TYPE_CHECKING`, and
    `import_module("x")`.

    `from a import b` yields `a.b`, since b may be a module; relative imports are resolved against `module`.
    """

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                yield from (Import(name.name, node.lineno, inside) for name in names)
            case ast.ImportFrom(module=base, names=names, level=level):
                parts = module.split(".") if level else []
                if level:
                    parts = parts[: len(parts) - level + is_package]
                origin = ".".join(parts + ([base] if base else []))
                yield from (Import(f"{origin}.{name.name}", node.lineno, inside) for name in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(target)), *_],
            ):
                yield Import(target, node.lineno, inside)
        within = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, within)

    yield from walk(ast.parse(source), False)


def is_core(item: Import) -> bool:
    """Whether something of core is imported."""
    return item.top == "harness" and item.second == "core"


def layer_of(module: str) -> str:
    """`core`, `worker`, `shell`, `command`, or `adapter`, from a module's dotted name."""
    first, *rest = module.split(".")
    if first == "adapters":
        return "adapter"
    if not rest:
        return "core"  # `harness` itself, which every layer imports
    return "command" if rest == ["__main__"] else FOLDERS[rest[0]]


def allowed(item: Import, module: str) -> bool:
    """Whether `module` may import `item`."""
    layer = layer_of(module)
    if item.top in STDLIB:
        return True
    if item.top in CLUSTERS:
        return item.inside and module == f"harness.shell.engines.cluster.{CLUSTERS[item.top]}"
    if layer in ("shell", "command"):
        return item.top not in FRAMEWORKS | {"adapters"} and not (
            item.top == "harness" and item.second == "worker"
        )
    if item.top == "numpy" or is_core(item):
        return True
    name = module.split(".")[1] if "." in module else ""
    match layer:
        case "core":
            brings_data = f"{module}.".startswith(f"{MAY_LOAD_DATA_PACKAGES}.")
            return item.top in ("sklearn", "mlxtend") and item.inside and brings_data
        case "worker":
            return item.top == "harness" and item.second == "worker"
        case "adapter" if name:
            own = OWN_FRAMEWORKS.get(name, {name})
            return item.top in own or (item.top == "adapters" and item.second == name)
    return False


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """One line for each import of `source` that the rule forbids `module`."""
    return [
        f"{module}:{item.line} ({layer_of(module)}) must not import {item.target}"
        for item in imports(source, module, is_package)
        if not allowed(item, module)
    ]


def files() -> dict[str, Path]:
    """Every Python file of the product by its module name; a package's `__init__.py` by the package's."""
    paths = sorted(path for top in ("harness", "adapters") for path in (ROOT / top).rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


@pytest.mark.parametrize("layer", ["core", "worker", "shell", "adapter", "command"])
def test_layer_imports_nothing_above_it(layer: str) -> None:
    """Catches: an import that breaks the dependency rule, even in a branch that no test reaches."""
    mine = {name: path for name, path in files().items() if layer_of(name) == layer}
    assert mine, f"no file of the {layer} layer was found: the test looks in the wrong place"
    forbidden = [
        line
        for name, path in mine.items()
        for line in violations(path.read_text("utf-8"), name, path.name == "__init__.py")
    ]
    assert not forbidden, "\n".join(forbidden)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("harness.core.network", "import torch"),
        ("harness.core.network", "from harness.shell.engines import protocol"),
        ("harness.core.network.tree", "from ...worker import main"),
        ("harness.core.network", "def f():\n    import mlflow"),
        ("harness.core.network", "def f():\n    from sklearn.datasets import load_iris"),
        ("harness.core.data.dataset", "import sklearn"),
        ("harness.worker.main", "import hydra"),
        ("harness.worker.main", "import psutil"),
        ("harness.worker.main", "def f():\n    import scipy"),
        ("harness.worker.main", "from ..shell.engines import protocol"),
        ("harness.worker.main", "from adapters.torch import Adapter"),
        ("harness.worker.main", "from importlib import import_module\nimport_module('adapters.torch')"),
        ("harness.shell.engines.protocol", "def f():\n    import keras"),
        ("harness.shell.engines.protocol", "import importlib\nimportlib.import_module('torch.cuda')"),
        ("harness.shell.engines.protocol", "if TYPE_CHECKING:\n    from adapters import torch"),
        ("harness.hydra_plugins.launcher", "import tensorflow as tf"),
        ("harness.shell.engines.cluster.ray", "import ray"),
        ("harness.shell.engines.cluster.engine", "def f():\n    import ray"),
        ("adapters.torch.step", "import tensorflow"),
        ("adapters.torch.step", "from adapters.keras import layers"),
        ("adapters.torch.step", "from ..keras import layers"),
        ("adapters.keras.step", "from omegaconf import OmegaConf"),
        ("adapters.keras.step", "from harness.worker import main"),
        ("adapters.other", "import torch"),
    ],
)
def test_the_rule_sees_what_it_forbids(module: str, source: str) -> None:
    """Catches: a checker that misses a forbidden import, so that the test above is void."""
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "harness.core.network",
            "from __future__ import annotations\nimport numpy\nfrom .data import Split",
        ),
        ("harness.core.data.dataset", "def f():\n    from sklearn.datasets import load_iris"),
        (
            "harness.worker.main",
            "from harness.core import network\nfrom harness.worker import io\nfrom . import io",
        ),
        ("harness.worker.main", "from importlib import import_module\nimport_module(f'adapters.{name}')"),
        (
            "harness.shell.engines.protocol",
            "import mlflow\nfrom harness.core import network\nfrom ..commands import main",
        ),
        ("harness.shell.engines.cluster.ray", "def f():\n    from ray.util import x"),
        ("adapters.torch.step", "import torch\nfrom torch import nn\nfrom harness.core.network import Dense"),
        ("adapters.torch.step", "from . import layers\nfrom adapters.torch.layers import build"),
        ("adapters.keras.step", "import jax\nimport tensorflow as tf"),
        ("adapters.other", "import other.nn"),
    ],
)
def test_the_rule_lets_through_what_it_allows(module: str, source: str) -> None:
    """Catches: a checker that refuses allowed imports."""
    assert violations(source, module) == []


def loaded_after_importing(modules: list[str]) -> set[str]:
    """The top-level names in sys.modules of a child process that has imported `modules`."""
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "print('LOADED', json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, json.dumps(modules)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return set(json.loads(child.stdout.rpartition("LOADED ")[2]))


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [
        ("core", FRAMEWORKS | ORCHESTRATION | {"sklearn", "scipy", "pandas", "rich"}),
        ("worker", FRAMEWORKS | ORCHESTRATION | {"sklearn", "scipy", "pandas", "rich"}),
        ("shell", FRAMEWORKS),
    ],
)
def test_importing_a_layer_loads_nothing_it_must_not(layer: str, forbidden: frozenset[str]) -> None:
    """Catches: a library that imports a framework, and module names that are computed at run time."""
    modules = [name for name in files() if layer_of(name) == layer and not name.endswith("__main__")]
    assert modules, f"no module of the {layer} layer was found: the test looks in the wrong place"
    assert not loaded_after_importing(modules) & forbidden
