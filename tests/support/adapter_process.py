"""A child process with one adapter, so that one test session can use several frameworks.

Keras fixes its backend at import and JAX its precision, so frameworks cannot share a process. Starting one
takes seconds, so a process serves a whole session. A case is a function `case(adapter, **arguments)` that
runs in the child. Its arguments and results are JSON values with arrays anywhere in them. Arrays travel in an
npz file: they arrive bit for bit, and nothing is pickled.
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
    """The part of `conf/framework/<name>.yaml` that tests need."""

    name: str
    adapter: str
    backend: str
    distributions: tuple[str, ...]
    executions: tuple[str, ...]
    execution: str
    python: str | None
    env: dict[str, str] = field(default_factory=dict)

    def missing(self) -> str:
        """The first distribution that is not installed; empty if none is missing or another interpreter is
        used."""
        for name in self.distributions if self.python is None else ():
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                return name
        return ""


def frameworks() -> dict[str, Framework]:
    """Every framework with a file in conf/framework, installed or not; its executions are those on a CPU."""
    by_name = {}
    for path in sorted((ROOT / "conf/framework").glob("*.yaml")):
        raw = yaml.safe_load(path.read_text("utf-8"))
        by_name[path.stem] = Framework(
            name=raw["name"],
            adapter=raw["adapter"],
            backend=raw["backend"],
            distributions=tuple(raw["distributions"]),
            executions=tuple(raw["executions"]["cpu"]),
            execution=raw["execution"],
            python=raw["python"],
            env={key: str(value) for key, value in (raw["env"] or {}).items()},
        )
    return by_name


class CaseError(AssertionError):
    """An exception in a case; the message is the child's traceback."""


class AdapterProcess:
    """A process with one framework in one precision: `call` runs a case in it, `close` ends it."""

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
        Raises CaseError if the case raises, if the child dies, and if no reply arrives within `TIMEOUT_S`.
        """
        self._calls += 1
        request = _write({"case": case, "arguments": arguments}, self._folder / f"{self._calls}.in.npz")
        reply = self._folder / f"{self._calls}.out.npz"
        assert self._child.stdin and self._child.stdout
        try:
            self._child.stdin.write(json.dumps({"request": request, "arrays": str(reply)}).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._death(case) from None
        if not select.select([self._child.stdout], [], [], TIMEOUT_S)[0]:
            self.close()
            raise CaseError(f"{case}: no reply within {TIMEOUT_S:g} s\n{self._log()}")
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
    """The processes of a session, each started on first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[tuple[str, str], AdapterProcess] = {}

    def __call__(self, framework: str, precision: str) -> AdapterProcess:
        """The process of a framework ("torch", "keras", ...) in "float32", "float64" or "bf16"."""
        key = (framework, precision)
        if key not in self._processes:
            folder = self._folder / "-".join(key)
            folder.mkdir()
            self._processes[key] = AdapterProcess(frameworks()[framework], precision, folder)
        return self._processes[key]

    def close(self) -> None:
        """End all children."""
        for process in self._processes.values():
            process.close()


def _precision(name: str) -> Any:
    assert name in ("float32", "float64", "bf16")
    return name


def _environment(options: AdapterOptions) -> dict[str, str]:
    """The variables that frameworks and their numerical libraries read at import."""
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
    """Save the arrays of `value` to `path`; return the rest of it with their names in the place of arrays."""
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
    """Serve requests in the child: one per line of standard input, one reply per line of standard output."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a framework's own output goes to the log
    adapter = importlib.import_module(module).adapter(options)
    for line in sys.stdin:
        message = json.loads(line)
        request = _read(message["request"])
        try:
            name, _, function = request["case"].partition(":")
            case = getattr(importlib.import_module(name), function)
            reply = _write({"value": case(adapter, **request["arguments"])}, Path(message["arrays"]))
            text = json.dumps(reply)
        except Exception:
            text = json.dumps({"plain": {"error": traceback.format_exc()}, "file": None})
        replies.write(text.encode() + b"\n")


if __name__ == "__main__":
    _serve(sys.argv[1], AdapterOptions(**json.loads(sys.argv[2])))
