"""Linter, formatter and type checker, with the settings and the pinned versions that the project states."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param(("ruff", "check", "--no-cache", "."), id="ruff-check"),
        pytest.param(("ruff", "format", "--no-cache", "--diff", "."), id="ruff-format"),
        pytest.param(("mypy", "--no-error-summary"), id="mypy"),
    ],
)
@pytest.mark.timeout(900)  # a first mypy run reads all of torch and mlflow
def test_code_is_clean(repository: Path, tool: tuple[str, ...]) -> None:
    """Catches: an unused import, a badly formatted file, a type error, a public name without a docstring."""
    command = [sys.executable, "-m", *tool]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, f"python -m {' '.join(tool)}\n{done.stdout}{done.stderr}"
