"""Frameworks as runs use them: versions in their interpreter, import in a worker, visible devices."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from typing import Any

from harness.core.config.run_config import FrameworkConfig
from harness.core.validation import ConfigError
from harness.shell.doctor.findings import FrameworkState, Problem
from harness.shell.environment.versions import PROJECT, look_up
from harness.shell.workers.key import WorkerKey, interpreter
from harness.shell.workers.process import Worker, WorkerDiedError

EXTRA = re.compile(r"""^([\w.-]+).*extra == ['"]([\w-]+)['"]""")
CARD_PREFIX = "gpu-"  # of extras that need a card
DEVELOPMENT = "dev"  # the extra for developers of evenbench


def examine(framework: FrameworkConfig, with_card: bool) -> tuple[FrameworkState, list[Problem]]:
    """Import a framework in a worker on the CPU, and in another worker on the card if there is one."""
    python = interpreter(framework)
    try:
        versions = dict(look_up(framework, framework.distributions))
    except ConfigError as error:
        problems = [Problem(f"{framework.name}: {m.problem}", m.allowed, True) for m in error.mistakes]
        return FrameworkState(framework.name, python, {}), problems
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        return FrameworkState(framework.name, python, versions, install(missing, framework.python)), []
    try:
        report = _probe(framework, "cpu")
    except WorkerDiedError as error:
        return FrameworkState(framework.name, python, versions), [_unusable(framework, error)]
    devices = {"cpu": _devices(report)}
    problems = []
    if with_card:
        try:
            devices["cuda"] = _devices(_probe(framework, "cuda"))
        except WorkerDiedError as error:
            devices["cuda"] = []
            extra = [
                n for n, names in extras().items() if n.startswith(CARD_PREFIX) and names & set(versions)
            ]
            advice = _pip([f"{PROJECT}[{name}]" for name in extra], framework.python)
            what = f"{framework.name} can't use the card: {error.exit.message}"
            problems.append(Problem(what, advice if extra else "install a build of it that supports cards"))
    state = FrameworkState(
        framework.name,
        python,
        versions,
        works=True,
        import_s=report["import_s"],
        executions=tuple(report.get("executions", ())),
        devices=devices,
        environment=report.get("environment", {}),
    )
    return state, problems


def install(missing: Iterable[str], python: str | None) -> str:
    """Return the command that installs packages, with evenbench's extra if one has them."""
    requirements = []
    for name in missing:
        extra = next((n for n, names in extras().items() if name in names and not _is_special(n)), None)
        requirements.append(f"{PROJECT}[{extra}]" if extra and python is None else name)
    return _pip(dict.fromkeys(requirements), python)


def missing_extras(with_card: bool) -> dict[str, str]:
    """Return the extras with packages that are not installed here, and the command that installs each."""
    return {
        name: _pip([f"{PROJECT}[{name}]"], None)
        for name, packages in extras().items()
        if name != DEVELOPMENT and (with_card or not name.startswith(CARD_PREFIX))
        if any(_is_missing(package) for package in packages)
    }


def extras() -> Mapping[str, set[str]]:
    """Return the packages of evenbench's extras; empty if it runs from a folder without being installed."""
    try:
        required = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    packages: dict[str, set[str]] = {}
    for match in filter(None, map(EXTRA.match, required)):
        packages.setdefault(match[2], set()).add(match[1])
    return packages


def _is_special(extra: str) -> bool:
    return extra == DEVELOPMENT or extra.startswith(CARD_PREFIX)


def _is_missing(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


def _pip(requirements: Iterable[str], python: str | None) -> str:
    program = f"{python} -m pip" if python else "pip"
    quoted = (f"'{name}'" if "[" in name else name for name in requirements)
    return f"{program} install {' '.join(quoted)}"


def _probe(framework: FrameworkConfig, device: str) -> dict[str, Any]:
    worker = Worker(WorkerKey.on(framework, device, "float32", 1))
    try:
        return worker.probe()
    finally:
        worker.close()


def _devices(report: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in report.get("environment", {}).get("devices", [])]


def _unusable(framework: FrameworkConfig, error: WorkerDiedError) -> Problem:
    """Describe packages that are installed and can't be imported; the log's last line may add the cause."""
    lines = [line for line in error.exit.log_tail.splitlines() if line.strip()]
    what = f"{framework.name} is installed and can't be used: {error.exit.message}"
    advice = _pip(["--force-reinstall", *framework.distributions], framework.python)
    detail = f" (last output: {lines[-1].strip()})" if lines and lines[-1].strip() not in what else ""
    return Problem(what + detail, advice, broken=True)
