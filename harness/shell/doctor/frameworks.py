"""Frameworks as runs meet them: versions in their interpreter, an import in a worker, devices they see."""

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
FOR_CARDS = "gpu-"  # how the names of extras begin that need a card
FOR_US = "dev"  # the extra of those who change the code


def examine(framework: FrameworkConfig, with_card: bool) -> tuple[FrameworkState, list[Problem]]:
    """Import a framework in a worker, and in another one on the card where there is a card."""
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
        said = _ask(framework, "cpu")
    except WorkerDiedError as error:
        return FrameworkState(framework.name, python, versions), [_unusable(framework, error)]
    devices = {"cpu": _devices(said)}
    problems = []
    if with_card:
        try:
            devices["cuda"] = _devices(_ask(framework, "cuda"))
        except WorkerDiedError as error:
            devices["cuda"] = []
            extra = [n for n, names in extras().items() if n.startswith(FOR_CARDS) and names & set(versions)]
            advice = _pip([f"{PROJECT}[{name}]" for name in extra], framework.python)
            what = f"{framework.name} can't use the card: {error.exit.message}"
            problems.append(
                Problem(what, advice if extra else "an installation of it that is made for cards")
            )
    state = FrameworkState(
        framework.name,
        python,
        versions,
        works=True,
        import_s=said["import_s"],
        executions=tuple(said.get("executions", ())),
        devices=devices,
        environment=said.get("environment", {}),
    )
    return state, problems


def install(missing: Iterable[str], python: str | None) -> str:
    """The command that brings packages, by an extra of ours where one has them."""
    wanted = []
    for name in missing:
        found = [n for n, names in extras().items() if name in names and not _is_special(n)]
        wanted.append(f"{PROJECT}[{found[0]}]" if found and python is None else name)
    return _pip(dict.fromkeys(wanted), python)


def missing_extras(with_card: bool) -> dict[str, str]:
    """The extras of which something is not installed here, with the command that brings each."""
    return {
        name: _pip([f"{PROJECT}[{name}]"], None)
        for name, packages in extras().items()
        if name != FOR_US and (with_card or not name.startswith(FOR_CARDS))
        if any(_is_missing(package) for package in packages)
    }


def extras() -> Mapping[str, set[str]]:
    """What our extras bring, by name; nothing where we run from a folder without being installed."""
    try:
        required = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, set[str]] = {}
    for match in filter(None, map(EXTRA.match, required)):
        found.setdefault(match[2], set()).add(match[1])
    return found


def _is_special(extra: str) -> bool:
    return extra == FOR_US or extra.startswith(FOR_CARDS)


def _is_missing(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


def _pip(wanted: Iterable[str], python: str | None) -> str:
    program = f"{python} -m pip" if python else "pip"
    quoted = (f"'{name}'" if "[" in name else name for name in wanted)
    return f"{program} install {' '.join(quoted)}"


def _ask(framework: FrameworkConfig, device: str) -> dict[str, Any]:
    worker = Worker(WorkerKey.on(framework, device, "float32", 1))
    try:
        return worker.probe()
    finally:
        worker.close()


def _devices(said: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in said.get("environment", {}).get("devices", [])]


def _unusable(framework: FrameworkConfig, error: WorkerDiedError) -> Problem:
    """Packages that are there and can't be imported; the last lines say more than the message alone."""
    said = [line for line in error.exit.log_tail.splitlines() if line.strip()]
    what = f"{framework.name} is installed and can't be used: {error.exit.message}"
    again = _pip(["--force-reinstall", *framework.distributions], framework.python)
    detail = f" (it said: {said[-1].strip()})" if said and said[-1].strip() not in what else ""
    return Problem(what + detail, again, broken=True)
