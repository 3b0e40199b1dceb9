"""Which versions a framework's worker would use, asked without importing the framework.

Versions are part of a run's identity, so they are needed before anything starts; a framework that is not
installed is found out here too, rather than by a worker that dies.
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
_ASK = """
import importlib.metadata as m, json, sys
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def versions(framework: FrameworkConfig) -> dict[str, str]:
    """The versions of `framework.distributions` in its interpreter, with Python's and this project's own.

    Raises ConfigError where one is missing or the interpreter can't be run.
    """
    found = _versions(framework.python, framework.distributions)
    missing = [name for name, version in found.items() if version is None]
    if missing:
        where = f"in {framework.python}" if framework.python else "here"
        problem = f"{framework.name!r} needs {', '.join(missing)}, not installed {where}"
        advice = f"pip install {' '.join(missing)}; or framework.python=<an interpreter that has it>"
        raise ConfigError([Mistake("framework", problem, advice)])
    return {name: str(version) for name, version in found.items()} | {PROJECT: project_version()}


def look_up(framework: FrameworkConfig, names: tuple[str, ...]) -> Mapping[str, str | None]:
    """The versions of other distributions in the framework's interpreter, None where one is missing."""
    return _versions(framework.python, names)


def installed(distributions: tuple[str, ...]) -> bool:
    """Whether all distributions are installed in this interpreter."""
    return None not in _versions(None, distributions).values()


def project_version() -> str:
    """This project's version, `unknown` where it runs without being installed."""
    try:
        return importlib.metadata.version(PROJECT)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def _versions(python: str | None, names: tuple[str, ...]) -> Mapping[str, str | None]:
    if python is None or python == sys.executable:
        return {name: _own_version(name) for name in names}
    try:
        asked = [python, "-c", _ASK, *names]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        problem = f"{python!r} can't be run as an interpreter: {error}"
        raise ConfigError([Mistake("framework.python", problem, "the path of a Python")]) from error
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def _own_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
