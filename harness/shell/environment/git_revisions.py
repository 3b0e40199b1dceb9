"""Which state of whose code a command runs: git's revisions of the working folder and of this project.

A version number says little while code is being worked on. Git is asked once a command; where there is no
git, or a folder is under none, nothing is said.
"""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import harness

PACKAGE = Path(harness.__file__).resolve().parent
TIMEOUT_S = 10.0  # of a git on a file system that hangs


def revisions() -> dict[str, Any]:
    """`{"folder": {"commit": ..., "dirty": ...}, "evenbench": ...}`, each where git knows of one; `dirty`
    where files that git keeps are other than in the commit. This project has one in a checkout alone."""
    found = {"folder": revision(Path.cwd()), "evenbench": None}
    if (PACKAGE.parent / ".git").exists():
        found["evenbench"] = revision(PACKAGE.parent)
    return {name: of for name, of in found.items() if of is not None}


@functools.cache
def revision(folder: Path) -> dict[str, Any] | None:
    """The commit that a folder is at, None where there is none."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changed is None:
        return None
    return {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    # a lock on the index could stop someone's commit
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=quiet,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
