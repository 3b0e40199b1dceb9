"""The user's cache: what is the same for all results folders on a machine, and costs seconds to make again.

It is `$EVENBENCH_CACHE`, or `evenbench` in `$XDG_CACHE_HOME` (`~/.cache` where that is not set). Whatever is
in it may be removed at any time. What depends on versions has them in its name, so that it need never be
looked through for what is out of date.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from harness.core.storage import atomic

VARIABLE = "EVENBENCH_CACHE"


def folder() -> Path:
    """Where the cache is, or will be."""
    own, common = os.environ.get(VARIABLE, ""), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own).absolute()
    # a relative one is to be ignored, says the XDG Base Directory Specification
    base = Path(common) if Path(common).is_absolute() else Path(os.path.expanduser("~")) / ".cache"
    return base / "evenbench"


def keep(name: str, write: Callable[[Path], object]) -> None:
    """Keep what `write` leaves at the path that it is given. Where that can't be done, it is made again the
    next time: a home that is full or read-only is no reason for a run to fail."""
    path = folder() / name
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as draft:
            write(draft)
