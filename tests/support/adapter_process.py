"""A child process with one adapter in it, so that one test session can ask several frameworks.

Keras fixes its backend at import and JAX its precision, so frameworks can't share a process, and starting
one costs seconds, so a process serves a whole session. A case is a function `case(adapter, **arguments)` that
runs in the child; what it is given and what it returns are JSON values with arrays anywhere in them. Arrays
go through an npz file, so they arrive bit for bit, and nothing is pickled.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import select
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness.core.adapter import AdapterOptions
from harness.core.storage import npz
from tests.support.paths import ROOT

ARRAY = "$array"
TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Framework:
    """What `conf/framework/<name>.yaml` says, as far as tests need it."""

    name: str
    adapter: str
    backend: str
    distributions: tuple[str, ...]
    executions: tuple[str, ...]
    python: str | None
    env: dict[str, str] = field(default_factory=dict)

    def missing(self) -> str:
        """Which of its distributions is not installed; empty if none is (or another interpreter has them)."""
        for name in self.distributions if self.python is None else ():
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                return name
        return ""


def frameworks() -> dict[str, Framework]:
    """Every framework that has a file in conf/framework, installed or not; executions are those of a CPU."""
    found = {}
    for path in sorted((ROOT / "conf/framework").glob("*.yaml")):
        raw = yaml.safe_load(path.read_text("utf-8"))
        found[path.stem] = Framework(
            name=raw["name"],
            adapter=raw["adapter"],
            backend=raw["backend"],
            distributions=tuple(raw["distributions"]),
            executions=tuple(raw["executions"]["cpu"]),
            python=raw["python"],
            env={key: str(value) for key, value in (raw["env"] or {}).items()},
        )
    return found


class CaseError(AssertionError):
    """A case raised in the child; the message is the child's traceback."""


class AdapterProcess:
    """One framework in one precision, in a process of its own. `call` runs a case in it; `close` ends it."""

    def __init__(self, framework: Framework, precision: str, folder: Path) -> None:
        self.framework, self.precision = framework, precision
        self._folder = folder
        self._calls = 0
        options = AdapterOptions(framework.backend, _precision(precision), 1, "cpu")
        program = [framework.python or sys.executable, "-m", "tests.support.adapter_process"]
        with (folder / "log").open("wb") as log:
            self._child = subprocess.Popen(
                [*program, framework.adapter, json.dumps(vars(options))],
                cwd=ROOT,
                env=os.environ | _environment(options) | framework.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def call(self, case: str, **arguments: Any) -> Any:
        """Run `case` ("tests.support.adapter_cases:function") in the child and return what it returns.

        Arguments and results: None, bool, int, float, str, lists, dicts with text keys, and NumPy arrays.
        Raises CaseError if the case raises, the child dies or gives no answer in time.
        """
        self._calls += 1
        request = _write({"case": case, "arguments": arguments}, self._folder / f"{self._calls}.in.npz")
        answer = self._folder / f"{self._calls}.out.npz"
        assert self._child.stdin and self._child.stdout
        try:
            self._child.stdin.write(json.dumps({"request": request, "arrays": str(answer)}).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._death(case) from None
        if not select.select([self._child.stdout], [], [], TIMEOUT_S)[0]:
            self.close()
            raise CaseError(f"{case}: no answer within {TIMEOUT_S:g} s\n{self._log()}")
        line = self._child.stdout.readline()
        if not line:
            raise self._death(case)
        result = _read(json.loads(line))
        if "error" in result:
            raise CaseError(f"{case} in {self.framework.name} ({self.precision}):\n{result['error']}")
        return result["value"]

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.communicate()

    def _death(self, case: str) -> CaseError:
        self._child.wait(10)
        return CaseError(f"{case}: the child ended with status {self._child.returncode}\n{self._log()}")

    def _log(self) -> str:
        return (self._folder / "log").read_text("utf-8", errors="replace")[-4000:]


Adapters = Callable[[str, str], AdapterProcess]
"""A process by framework and precision, as the fixture `adapters` returns it."""


class AdapterProcesses:
    """The labs of a session, each started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._labs: dict[tuple[str, str], AdapterProcess] = {}

    def __call__(self, framework: str, precision: str) -> AdapterProcess:
        """The lab of a framework ("torch", "keras", ...) in "float32", "float64" or "bf16"."""
        key = (framework, precision)
        if key not in self._labs:
            folder = self._folder / "-".join(key)
            folder.mkdir()
            self._labs[key] = AdapterProcess(frameworks()[framework], precision, folder)
        return self._labs[key]

    def close(self) -> None:
        """End all children."""
        for adapters in self._labs.values():
            adapters.close()


def _precision(name: str) -> Any:
    assert name in ("float32", "float64", "bf16")
    return name


def _environment(options: AdapterOptions) -> dict[str, str]:
    """What the frameworks and their numerical libraries read when they are imported."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return {
        **dict.fromkeys((*threads, "TF_NUM_INTEROP_THREADS", "NPROC"), str(options.threads)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1" if options.precision == "float64" else "0",
        "KERAS_BACKEND": options.backend,
    }


def _write(value: Any, path: Path) -> dict[str, Any]:
    """`value` with its arrays replaced by their names in the file at `path`."""
    arrays: dict[str, Any] = {}

    def replace(part: Any) -> Any:
        if isinstance(part, np.ndarray):
            name = f"a{len(arrays)}"
            arrays[name] = part
            return {ARRAY: name}
        if isinstance(part, dict):
            return {key: replace(inner) for key, inner in part.items()}
        if isinstance(part, (list, tuple)):
            return [replace(inner) for inner in part]
        return part

    plain = replace(value)
    if arrays:
        npz.save(path, arrays)
    return {"plain": plain, "file": str(path) if arrays else None}


def _read(written: dict[str, Any]) -> Any:
    arrays = npz.load(Path(written["file"])) if written["file"] else {}

    def replace(part: Any) -> Any:
        if isinstance(part, dict):
            if ARRAY in part:
                return arrays[part[ARRAY]]
            return {key: replace(inner) for key, inner in part.items()}
        if isinstance(part, list):
            return [replace(inner) for inner in part]
        return part

    return replace(written["plain"])


def _serve(module: str, options: AdapterOptions) -> None:
    """The child: one request a line on standard input, one answer a line on what was standard output."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a framework prints goes to the log
    adapter = importlib.import_module(module).adapter(options)
    for line in sys.stdin:
        message = json.loads(line)
        request = _read(message["request"])
        try:
            name, _, function = request["case"].partition(":")
            case = getattr(importlib.import_module(name), function)
            answer = _write({"value": case(adapter, **request["arguments"])}, Path(message["arrays"]))
            text = json.dumps(answer)
        except Exception:
            text = json.dumps({"plain": {"error": traceback.format_exc()}, "file": None})
        answers.write(text.encode() + b"\n")


if __name__ == "__main__":
    _serve(sys.argv[1], AdapterOptions(**json.loads(sys.argv[2])))
