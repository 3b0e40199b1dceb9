"""The versions that a framework's worker would use, looked up without importing the framework.

Versions are part of a run's identity, so they are needed before any worker starts. A framework that is not
installed is also detected here, rather than by a worker that fails.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping

from harness.core.config.run_config import FrameworkConfig
from harness.core.validation import ConfigError, Mistake

PROJECT = "evenbench"
_SCRIPT = """
import importlib.metadata as m, json, sys
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def versions(framework: FrameworkConfig) -> dict[str, str]:
    """The versions of `framework.distributions` in its interpreter, with Python's and this project's own.

    Raises ConfigError if one is missing or the interpreter can't be run.
    """
    distributions = _versions(framework.python, framework.distributions)
    missing = [name for name, version in distributions.items() if version is None]
    if missing:
        where = f"in {framework.python}" if framework.python else "here"
        problem = f"{framework.name!r} needs {', '.join(missing)}, not installed {where}"
        advice = f"pip install {' '.join(missing)}; or framework.python=<an interpreter that has it>"
        raise ConfigError([Mistake("framework", problem, advice)])
    return {name: str(version) for name, version in distributions.items()} | {PROJECT: project_version()}


def look_up(framework: FrameworkConfig, names: tuple[str, ...]) -> Mapping[str, str | None]:
    """The versions of any distributions in the framework's interpreter, None for a missing one."""
    return _versions(framework.python, names)


def installed(distributions: tuple[str, ...]) -> bool:
    """Whether all distributions are installed in this interpreter."""
    return None not in _versions(None, distributions).values()


def project_version() -> str:
    """This project's version, or `unknown` if it is not installed."""
    try:
        return importlib.metadata.version(PROJECT)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def _versions(python: str | None, names: tuple[str, ...]) -> Mapping[str, str | None]:
    if python is None or python == sys.executable:
        return {name: _own_version(name) for name in names}
    try:
        command = [python, "-c", _SCRIPT, *names]
        process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        problem = f"{python!r} can't be run as an interpreter: {error}"
        raise ConfigError([Mistake("framework.python", problem, "the path of a Python")]) from error
    versions: dict[str, str | None] = json.loads(process.stdout)
    return versions


def _own_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
