"""The git revisions of the working folder and of this project, recorded with each run.

A version number says little during development. Git is called once per command; without git, or outside of a
repository, no revision is recorded.
"""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import harness

PACKAGE = Path(harness.__file__).resolve().parent
TIMEOUT_S = 10.0  # in case the file system hangs


def revisions() -> dict[str, Any]:
    """`{"folder": {"commit": ..., "dirty": ...}, "evenbench": ...}`, without those that git does not know.

    `dirty` means that tracked files differ from the commit. This project has a revision only in a checkout.
    """
    every = {"folder": revision(Path.cwd()), "evenbench": None}
    if (PACKAGE.parent / ".git").exists():
        every["evenbench"] = revision(PACKAGE.parent)
    return {name: one for name, one in every.items() if one is not None}


@functools.cache
def revision(folder: Path) -> dict[str, Any] | None:
    """The commit of a folder, or None if there is none."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changed is None:
        return None
    return {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    # without optional locks, so that a commit made at the same time does not fail
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        process = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()
