"""Advisory locks between processes, one file each.

The operating system releases such a lock when its holder dies, however it dies, so a killed command never
leaves a results folder locked.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from harness.core.validation import ConfigError, Mistake


@contextlib.contextmanager
def exclusive_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Acquire an exclusive lock on `path` (created if missing), blocking until it is free.

    With `wait=False`, raise BlockingIOError if another process holds it.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        try:
            yield
        finally:
            # closing is not enough: a process that was forked meanwhile shares the open file
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def exclusive_lock_or_fail(path: Path, mistake: Mistake) -> Iterator[None]:
    """Acquire an exclusive lock on `path` (created with its folder) without waiting.

    Raises ConfigError with `mistake` if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(path, wait=False))
        except BlockingIOError:
            raise ConfigError([mistake]) from None
        yield


def is_locked(path: Path) -> bool:
    """Return whether a living process holds a lock, exclusive or shared, on `path`; False without a file."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
