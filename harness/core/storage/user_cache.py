"""The user's cache: files that all results folders on a machine share and that take seconds to recreate.

It is `$EVENBENCH_CACHE`, or `evenbench` in `$XDG_CACHE_HOME` (default `~/.cache`). Any file in it may be
removed at any time. Files that depend on versions have them in their names, so stale entries are never read
and need no clean-up.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from harness.core.storage import atomic

VARIABLE = "EVENBENCH_CACHE"


def folder() -> Path:
    """Return the folder of the cache, which may not exist yet."""
    own, common = os.environ.get(VARIABLE, ""), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own).absolute()
    # the XDG Base Directory Specification says to ignore relative paths
    base = Path(common) if Path(common).is_absolute() else Path(os.path.expanduser("~")) / ".cache"
    return base / "evenbench"


def store(name: str, write: Callable[[Path], object]) -> None:
    """Store the file that `write` creates at the path passed to it, atomically.

    Ignores OSError: with a full or read-only home the run does not fail, and the next command recreates the
    entry.
    """
    path = folder() / name
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_write(path) as draft:
            write(draft)
